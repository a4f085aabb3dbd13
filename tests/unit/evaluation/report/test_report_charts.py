"""Tests of the charts of the report."""

from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report.evidence import BASELINE, TrialRecord
from tailorbird.evaluation.report.html import to_html
from tailorbird.pages.charts import Dot, Line, Text
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


def test_the_learning_curve_of_each_trial_is_drawn_over_the_best_baseline() -> None:
    trials = [
        TrialRecord("probe", "probe", {}, 0, 0.75, 0.0, BASELINE),
        TrialRecord("1af31", "full", {}, 1, 0.6, 1.0, "stopped", scores=(0.6,)),
        TrialRecord("17b62", "full", {}, 3, 0.9, 1.0, "completed", scores=(0.7, 0.8, 0.9)),
    ]
    chart = charts.learning_curves(charts.contenders_of(trials))
    assert chart is not None
    dots = [
        (mark.title.partition(":")[0], mark.kind) for mark in chart.marks if isinstance(mark, Dot)
    ]
    assert dots == [("trial 1af31", "dot incumbent"), *[("trial 17b62", "dot chosen")] * 3]
    lines = [mark.kind for mark in chart.marks if isinstance(mark, Line)]
    assert (lines.count("path chosen"), lines.count("guide")) == (2, 1)
    assert {"1", "2", "3"} <= {mark.text for mark in chart.marks if isinstance(mark, Text)}
    assert charts.learning_curves(charts.contenders_of(trials[:1])) is None
