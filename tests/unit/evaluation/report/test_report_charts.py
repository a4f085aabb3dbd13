"""Tests of the charts of the report, and of what would change a verdict."""

from tailorbird.evaluation.report import charts
from tailorbird.evaluation.report.evidence import PRETRAINED, TrialRecord
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.outlook import what_would_change
from tailorbird.pages.charts import Dot
from tests.unit.evaluation.report.test_html import ON_GPU, evidence_for
from tests.unit.evaluation.simulated import evidence_of


def test_the_bound_of_the_cost_gate_is_described_in_the_currency() -> None:
    evidence = evidence_of(ON_GPU)
    (gate,) = [gate for gate in evidence.verdict.gates if gate.name == "cost"]
    (bound,) = gate.bounds
    label = f"{bound.estimate:.2f}, interval {bound.interval[0]:.2f} to {bound.interval[1]:.2f}, limit"
    assert label in to_html(evidence)
    assert f"{100 * bound.estimate:.2f}, interval" not in to_html(evidence)


def test_the_chart_of_the_sweep_marks_the_best_trial_and_omits_failed_ones() -> None:
    trials = (("probe", 0, 0.9, PRETRAINED), ("first", 2, 0.7, "completed"), ("second", 2, 0.8, "completed"))
    rows = [
        TrialRecord(name, "full", {}, epochs, score, 1.0, status)
        for name, epochs, score, status in (*trials, ("broken", 0, 0.0, "failed"))
    ]
    marks = {mark.title: mark.kind for mark in charts.sweep(rows).marks if isinstance(mark, Dot)}
    kinds = {title.partition(":")[0]: kind for title, kind in marks.items()}
    assert kinds == {"probe": "dot other", "first": "dot candidate", "second": "dot chosen"}


def test_rows_needed_that_suffice_do_not_rule_out_smaller_gains() -> None:
    verdict = evidence_for("INSUFFICIENT_EVIDENCE").verdict
    enough = verdict.model_copy(update={"rows_needed": verdict.n - 1})
    assert what_would_change(enough).startswith(f"These {verdict.n:,} test rows suffice for a true gain of")
