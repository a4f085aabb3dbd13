"""Tests of verdicts for chat tasks: a mean score per row, rows that share documents, and no changed
rows."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import CostConfig, SubgroupGateConfig
from tailorbird.evaluation.gates.cost import TrainingUsage
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.predictions import VerdictRefused
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.html import to_html
from tailorbird.evaluation.report.model_card import scores_of, to_model_card
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.reach import reach_verdict
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.simulated import (
    Simulation,
    evidence_of,
    inputs_of_tables,
    on_cpu,
    protocol_of,
    tables_of,
)
from tests.unit.evaluation.verdict.tables import (
    PRICES,
    decision_of,
    inputs_of,
    models,
    protocol_for,
)

PRICES_OF_RECIPE = PRICES.model_dump(include=set(CostConfig.model_fields)) | {
    "value_of_correct": 0.5,
}
BETTER = Simulation(
    num_rows=900, incumbent=0.3, candidate=0.5, contenders={"few_shot": 0.25}, chat=True
)
PROVEN = Simulation(num_rows=900, incumbent=0.5, candidate=0.8, gates=False)
EQUAL = Simulation(
    num_rows=900,
    incumbent=0.4,
    candidate=0.4,
    contenders={"few_shot": 0.25},
    chat=True,
    gates=False,
)


def verdict_of(simulation: Simulation) -> Verdict:
    return reach_verdict(
        inputs_of_tables(simulation, tables_of(simulation)), protocol=protocol_of(simulation)
    )


def test_a_proven_gain_in_token_f1_leads_to_fine_tune() -> None:
    verdict = verdict_of(replace(BETTER, gates=False))
    assert (verdict.outcome, verdict.num_units) == (Outcome.FINE_TUNE, 300)
    assert list(verdict.model("candidate").scores) == ["token_f1", "exact_match"]
    assert "bag-of-words" not in " ".join(verdict.sentences)
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("num_documents", [1, 5, 12])
@pytest.mark.parametrize(
    "simulation", [replace(BETTER, gates=False), PROVEN], ids=["token_f1", "accuracy"]
)
def test_a_large_gain_on_fewer_than_six_documents_decides_nothing(
    simulation: Simulation, num_documents: int
) -> None:
    """The document column has few values."""
    tables = {
        name: replace(table, clusters=tuple(str(row % num_documents) for row in range(len(table))))
        for name, table in tables_of(simulation).items()
    }
    verdict = reach_verdict(inputs_of_tables(simulation, tables), protocol=protocol_of(simulation))
    if num_documents == 12:
        assert verdict.outcome is Outcome.FINE_TUNE
        return
    assert (verdict.outcome, verdict.selected) == (Outcome.INSUFFICIENT_EVIDENCE, "incumbent")
    assert verdict.relation("candidate", "incumbent").interval == (-1.0, 1.0)
    assert verdict.power is not None
    assert verdict.power.at_expected_gain == 0
    assert num_documents > 1 or verdict.power.rows_needed is None
    units = "1 document or text" if num_documents == 1 else "5 documents or texts"
    expected = (
        f"The 900 test rows come from {units}, but an interval needs at least 6; add test rows "
        "from further"
    )
    assert any(sentence.startswith(expected) for sentence in verdict.sentences)


@pytest.mark.parametrize("in_documents", [False, True])
@pytest.mark.parametrize("num_units", [300, 900])
def test_a_cheaper_candidate_needs_the_rows_or_documents_that_exclude_an_unseen_loss(
    in_documents: bool, num_units: int
) -> None:
    """Nearly equal scores do not exclude a loss of 1 in 1.2% of 300 units, above the margin, or in
    0.4% of 900."""
    size = 2 if in_documents else 1
    scores = 0.5 + np.repeat(np.resize([-0.001, 0.001], num_units), size)
    clusters = tuple(str(row // size) for row in range(len(scores))) if in_documents else None
    tables = [
        replace(table, measures={"token_f1": measure}, clusters=clusters)
        for table, measure in zip(
            models(0, 0, 0, len(scores)), (np.full(len(scores), 0.5), scores), strict=True
        )
    ]
    costs = on_cpu({"incumbent": (2.0,) * 5, "candidate": (1.0,) * 5})
    free = PRICES.model_copy(update={"value_of_correct": 0.0})
    protocol = protocol_for(len(scores), metric="token_f1", cost=free)
    decision = decision_of(
        replace(inputs_of(*tables), costs=costs, training=TrainingUsage()), protocol=protocol
    )
    assert (decision.outcome is Outcome.FINE_TUNE) is (num_units == 900)


def test_a_gain_in_token_f1_is_priced_by_token_f1() -> None:
    """Token F1 increases while no answer matches its label exactly."""
    simulation = replace(BETTER, evaluation={"cost": PRICES_OF_RECIPE})
    never = {
        name: replace(table, outputs=("",) * len(table), scores=np.zeros(len(table)))
        for name, table in tables_of(simulation).items()
    }
    costs = on_cpu(dict.fromkeys(("incumbent", "candidate", "few_shot"), (2.0,) * 5))
    case = replace(inputs_of_tables(simulation, never), costs=costs)
    verdict = reach_verdict(case, protocol=protocol_of(simulation))
    assert verdict.outcome is Outcome.FINE_TUNE
    (cost,) = [gate for gate in verdict.gates if gate.name == "cost"]
    assert str(cost.state) == "passes"
    gain = verdict.relation("candidate", "incumbent").gain
    assert f"gain {gain * 0.5 * 10_000:+,.2f}" in cost.note
    assert "the gain is not measured in accuracy" in cost.note


def test_a_group_of_one_row_is_not_assessable() -> None:
    tables = tables_of(BETTER)
    groups = {"g": ("single", *("rest",) * (len(tables["candidate"]) - 1))}
    candidate, incumbent = (
        replace(tables[role], groups=groups) for role in ("candidate", "incumbent")
    )
    gate = groups_gate(
        candidate, incumbent=incumbent, limits=SubgroupGateConfig(), alpha=0.05, metric="token_f1"
    )
    assert {bound.what: str(bound.state) for bound in gate.bounds}[
        "change for g = single"
    ] == "not assessable"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_measure_that_is_not_finite_is_refused(value: float) -> None:
    tables = tables_of(EQUAL)
    broken = tables["candidate"].measures["token_f1"].copy()
    broken[3] = value
    measures = tables["candidate"].measures | {"token_f1": broken}
    tables["candidate"] = replace(tables["candidate"], measures=measures)
    with pytest.raises(VerdictRefused, match=r"token_f1 (nan|inf) at row 'r3'"):
        reach_verdict(inputs_of_tables(EQUAL, tables), protocol=protocol_of(EQUAL))


def test_rows_without_scores_in_the_metric_are_refused() -> None:
    tables = tables_of(EQUAL)
    tables["candidate"] = replace(tables["candidate"], measures={})
    with pytest.raises(VerdictRefused, match="no scores for 'token_f1'"):
        reach_verdict(inputs_of_tables(EQUAL, tables), protocol=protocol_of(EQUAL))


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
