"""Tests of the charts of the report."""

from tailorbird.evaluation.report.html import to_html
from tests.unit.evaluation.report.test_html import ON_GPU
from tests.unit.evaluation.simulated import evidence_of


def test_the_bound_of_the_cost_gate_is_described_in_the_currency() -> None:
    evidence = evidence_of(ON_GPU)
    (gate,) = [gate for gate in evidence.verdict.gates if gate.name == "cost"]
    (bound,) = gate.bounds
    label = (
        f"{bound.estimate:.2f}, interval {bound.interval[0]:.2f} to {bound.interval[1]:.2f}, limit"
    )
    assert label in to_html(evidence)
    assert f"{100 * bound.estimate:.2f}, interval" not in to_html(evidence)
