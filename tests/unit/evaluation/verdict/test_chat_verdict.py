"""Tests of verdicts for chat tasks: a mean score per row, rows that share documents, and no changed rows."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import scores_of, to_model_card
from tailorbird.evaluation.statistics.documents import document_effect, documents_of
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.rules import Outcome
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import (
    SHA,
    Simulation,
    evidence_of,
    inputs_of_tables,
    on_cpu,
    protocol_of,
    tables_of,
)
from tests.unit.evaluation.verdict.test_decide import inputs_of, models, protocol_for

PRICES = {
    "value_of_correct": 0.5,
    "requests_per_month": 1000,
    "horizon_months": 12,
    "price_per_cpu_hour": 0.36,
    "price_per_gb_month": 0,
}
BETTER = Simulation(num_rows=900, incumbent=0.3, candidate=0.5, contenders={"few_shot": 0.25}, chat=True)
PROVEN = Simulation(num_rows=900, incumbent=0.5, candidate=0.8, gates=False)
EQUAL = Simulation(num_rows=900, incumbent=0.4, candidate=0.4, contenders={"few_shot": 0.25}, chat=True, gates=False)


def verdict_of(simulation: Simulation) -> Verdict:
    return decide(inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation))


def test_a_proven_gain_in_token_f1_leads_to_fine_tune() -> None:
    verdict = verdict_of(replace(BETTER, gates=False))
    assert (verdict.outcome, verdict.rule) == (Outcome.FINE_TUNE, 4)
    assert verdict.metric == "token_f1"
    assert verdict.second_metric.metric == "exact_match"
    assert "bag-of-words" not in " ".join(verdict.reasons)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.parametrize("num_documents", [1, 5, 12])
@pytest.mark.parametrize("simulation", [replace(BETTER, gates=False), PROVEN], ids=["token_f1", "accuracy"])
def test_a_large_gain_on_fewer_than_six_documents_decides_nothing(simulation: Simulation, num_documents: int) -> None:
    """The document column has few values."""
    tables = {
        name: replace(table, clusters=tuple(str(row % num_documents) for row in range(len(table))))
        for name, table in tables_of(simulation).items()
    }
    verdict = decide(inputs_of_tables(simulation, tables), protocol=protocol_of(simulation))
    if num_documents == 12:
        assert (verdict.outcome, verdict.rule) == (Outcome.FINE_TUNE, 4)
        return
    assert (verdict.outcome, verdict.rule) == (Outcome.INSUFFICIENT_EVIDENCE, 8)
    assert (verdict.interval, verdict.proven, verdict.winner) == ((-1.0, 1.0), False, "incumbent")
    units = "1 document or text" if num_documents == 1 else "5 documents or texts"
    assert verdict.reasons[0] == (
        f"the 900 test rows come from {units}, but an interval needs at least 6; add test rows from further documents"
    )


def test_interval_and_p_value_come_from_the_effect_over_documents() -> None:
    tables = tables_of(BETTER)
    candidate, incumbent = tables["candidate"], tables["incumbent"]
    expected = document_effect(
        candidate.measures["token_f1"] - incumbent.measures["token_f1"],
        documents=documents_of(candidate.clusters, num_rows=len(candidate)),
        alpha=0.05,
    )
    comparison = compare(candidate, other=incumbent, metric="token_f1", alpha=0.05)
    assert comparison.gain == expected.gain
    assert (comparison.interval, comparison.p_value) == (expected.interval, expected.p_value)
    assert comparison.candidate_score == pytest.approx(candidate.measures["token_f1"].mean())
    independent = compare(replace(candidate, clusters=None), other=incumbent, metric="token_f1", alpha=0.05)
    assert independent.interval != comparison.interval


def test_equal_models_do_not_lead_to_fine_tune() -> None:
    assert verdict_of(EQUAL).outcome is not Outcome.FINE_TUNE


def test_the_interval_of_identical_answers_is_not_a_single_point() -> None:
    tables = tables_of(EQUAL)
    case = VerdictInputs(
        incumbent=inputs_of_tables(EQUAL, tables).incumbent, candidate=inputs_of_tables(EQUAL, tables).incumbent,
        test_sha256=SHA,
    )  # fmt: skip
    verdict = decide(case, protocol=protocol_of(EQUAL))
    assert verdict.interval[0] < 0 < verdict.interval[1]


@pytest.mark.parametrize("in_documents", [False, True])
@pytest.mark.parametrize("num_units", [300, 900])
def test_rule_7_needs_the_rows_or_documents_that_exclude_an_unseen_loss(in_documents: bool, num_units: int) -> None:
    """Nearly equal scores do not exclude a loss of 1 in 1.2% of 300 units, above the margin, or in 0.4% of 900."""
    size = 2 if in_documents else 1
    scores = 0.5 + np.repeat(np.resize([-0.001, 0.001], num_units), size)
    clusters = tuple(str(row // size) for row in range(len(scores))) if in_documents else None
    tables = [
        replace(table, measures={"token_f1": measure}, clusters=clusters)
        for table, measure in zip(models(0, 0, 0, len(scores)), (np.full(len(scores), 0.5), scores), strict=True)
    ]
    costs = on_cpu({"incumbent": (2.0,) * 5, "candidate": (1.0,) * 5})
    protocol = protocol_for(len(scores), metric="token_f1")
    verdict = decide(replace(inputs_of(*tables), costs=costs), protocol=protocol)
    assert (verdict.rule == 7) is (num_units == 900)


def test_groups_of_a_chat_task_are_compared_by_its_metric() -> None:
    tables = tables_of(replace(BETTER, by_group={"female": 0.1}))
    gate = groups_gate(
        tables["candidate"], incumbent=tables["incumbent"], limits=SubgroupGateConfig(), alpha=0.05, metric="token_f1"
    )
    states = {bound.what: str(bound.state) for bound in gate.bounds}
    assert states["change for sex = female"] == "fails"
    assert states["change for sex = male"] == "passes"
    members = np.array(tables["candidate"].groups["sex"]) == "female"
    change = (tables["candidate"].measures["token_f1"] - tables["incumbent"].measures["token_f1"])[members]
    assert next(b for b in gate.bounds if "female" in b.what).estimate == pytest.approx(change.mean())


def test_a_gain_in_token_f1_is_priced_by_token_f1() -> None:
    """Token F1 increases while no answer matches its label exactly."""
    simulation = replace(BETTER, evaluation={"cost": PRICES})
    tables = tables_of(simulation)
    never = {
        name: replace(table, outputs=("",) * len(table), scores=np.zeros(len(table))) for name, table in tables.items()
    }
    costs = on_cpu(dict.fromkeys(("incumbent", "candidate", "few_shot"), (2.0,) * 5))
    case = replace(inputs_of_tables(simulation, never), costs=costs)
    verdict = decide(case, protocol=protocol_of(simulation))
    assert (verdict.outcome, verdict.rule) == (Outcome.FINE_TUNE, 4)
    (cost,) = [gate for gate in verdict.gates if gate.name == "cost"]
    assert str(cost.state) == "passes"
    worth = verdict.gain * PRICES["value_of_correct"] * PRICES["requests_per_month"] * PRICES["horizon_months"]
    assert f"gain {worth:+,.2f}" in cost.note
    assert "the gain is not measured in accuracy" in cost.note


def test_a_group_of_one_row_is_not_assessable() -> None:
    tables = tables_of(BETTER)
    groups = {"g": ("single", *("rest",) * (len(tables["candidate"]) - 1))}
    candidate, incumbent = (replace(tables[role], groups=groups) for role in ("candidate", "incumbent"))
    gate = groups_gate(candidate, incumbent=incumbent, limits=SubgroupGateConfig(), alpha=0.05, metric="token_f1")
    assert {bound.what: str(bound.state) for bound in gate.bounds}["change for g = single"] == "not assessable"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rule_1_refuses_a_measure_that_is_not_finite(value: float) -> None:
    tables = tables_of(EQUAL)
    broken = tables["candidate"].measures["token_f1"].copy()
    broken[3] = value
    measures = tables["candidate"].measures | {"token_f1": broken}
    tables["candidate"] = replace(tables["candidate"], measures=measures)
    with pytest.raises(VerdictRefused, match=r"token_f1 (nan|inf) at row 'r3'"):
        decide(inputs_of_tables(EQUAL, tables), protocol=protocol_of(EQUAL))


def test_rows_without_scores_in_the_metric_are_refused() -> None:
    tables = tables_of(EQUAL)
    tables["candidate"] = replace(tables["candidate"], measures={})
    with pytest.raises(VerdictRefused, match="no scores for 'token_f1'"):
        decide(inputs_of_tables(EQUAL, tables), protocol=protocol_of(EQUAL))


def test_chat_predictions_survive_an_arrow_round_trip() -> None:
    table = tables_of(BETTER)["candidate"]
    again = Predictions.from_table(table.to_table())
    assert again.clusters == table.clusters
    assert set(again.measures) == {"token_f1", "rouge_l", "log_likelihood"}
    for name, values in table.measures.items():
        np.testing.assert_array_equal(again.measures[name], values)


def test_report_card_and_console_describe_a_chat_task() -> None:
    evidence = evidence_of(BETTER)
    page, card = to_html(evidence), to_model_card(evidence)
    assert "token F1" in page
    assert "log likelihood of the reference" in page
    assert "bag-of-words" not in page
    assert "Reliability" not in page
    assert "text-generation" in card
    assert "its classes" not in card
    assert scores_of(evidence, role="candidate").keys() == {"token_f1", "exact_match"}
    assert any(line.startswith("full (candidate)") for line in verdict_lines(evidence))
