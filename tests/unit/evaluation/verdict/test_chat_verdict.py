"""Tests of verdicts for chat tasks: a mean score per row, rows that share documents, and no changed
rows."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import CostConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.report.model_scores import suite_scores
from tailorbird.evaluation.verdict.decide import Outcome
from tailorbird.evaluation.verdict.reach import reach_verdict
from tests.unit.evaluation.simulated import (
    Simulation,
    inputs_of_tables,
    protocol_of,
    tables_of,
)
from tests.unit.evaluation.simulated_suites import suite_table
from tests.unit.evaluation.verdict.tables import (
    PRICES,
    decision_of,
    inputs_of,
    measured,
    predictions,
    protocol_for,
)

PRICES_OF_RECIPE = PRICES.model_dump(include=set(CostConfig.model_fields)) | {
    "value_of_correct": 0.5,
}
BETTER = Simulation(
    num_rows=900, incumbent=0.3, candidate=0.5, contenders={"few_shot": 0.25}, chat=True
)
PROVEN = Simulation(num_rows=900, incumbent=0.5, candidate=0.8, gates=False)


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


@pytest.mark.parametrize("in_documents", [False, True])
@pytest.mark.parametrize("num_units", [300, 900])
def test_a_cheaper_candidate_needs_the_rows_or_documents_that_exclude_an_unseen_loss(
    in_documents: bool, num_units: int
) -> None:
    """Nearly equal scores do not exclude a loss of 1 in 1.2% of 300 units, above the margin, or in
    0.4% of 900."""
    scores = 0.5 + np.resize([-0.001, 0.001], num_units)
    clusters = None
    if in_documents:
        scores = scores.repeat(2)
        clusters = tuple(str(row // 2) for row in range(len(scores)))
    tables = []
    for measure in (np.full(len(scores), 0.5), scores):
        table = predictions("full", np.zeros(len(scores), bool))
        tables.append(replace(table, measures={"token_f1": measure}, clusters=clusters))
    free = PRICES.model_copy(update={"value_of_correct": 0.0})
    protocol = protocol_for(len(scores), metric="token_f1", cost=free)
    decision = decision_of(measured(inputs_of(*tables), candidate=1.0), protocol=protocol)
    assert (decision.outcome is Outcome.FINE_TUNE) is (num_units == 900)


def test_a_gain_in_token_f1_is_priced_by_token_f1() -> None:
    """Token F1 increases while no answer matches its label exactly."""
    simulation = replace(BETTER, evaluation={"cost": PRICES_OF_RECIPE})
    tables = {
        name: replace(table, outputs=("",) * len(table), scores=np.zeros(len(table)))
        for name, table in tables_of(simulation).items()
    }
    inputs = measured(inputs_of_tables(simulation, tables))
    verdict = reach_verdict(inputs, protocol=protocol_of(simulation))
    assert verdict.outcome is Outcome.FINE_TUNE
    (cost,) = [gate for gate in verdict.gates if gate.name == "cost"]
    assert cost.state is State.PASSES
    gain = verdict.relation("candidate", "incumbent").gain
    assert f"gain {gain * 0.5 * 10_000:+,.2f}" in cost.note
    assert "the gain is not measured in accuracy" in cost.note


FORGETS = Simulation(
    num_rows=600,
    incumbent=0.3,
    candidate=0.6,
    contenders={"few_shot": 0.25},
    chat=True,
    suites={"general": (0.2, 0.7), "refusals": (0.9, 0.9)},
)


def test_a_better_candidate_that_forgets_is_stopped_by_the_suites_gate() -> None:
    outcomes = []
    for simulation in (FORGETS, replace(FORGETS, suites={"general": (0.7, 0.7)})):
        inputs = inputs_of_tables(simulation, tables_of(simulation))
        verdict = reach_verdict(inputs, protocol=protocol_of(simulation))
        [gate] = [gate for gate in verdict.gates if gate.name == "suites"]
        outcomes.append((verdict.outcome, verdict.selected, gate.state))
    assert outcomes == [
        (Outcome.STAY, "incumbent", State.FAILS),
        (Outcome.FINE_TUNE, "candidate", State.PASSES),
    ]


def test_a_model_that_cannot_answer_a_row_has_no_score() -> None:
    tables = {
        "incumbent_suite-x": suite_table("nearest", [1.0, np.nan, 1.0]),
        "candidate_suite-x": suite_table("full", [1.0, 0.0, 1.0]),
    }
    scores = suite_scores(tables, suites=("x",), roles=("incumbent", "candidate"))
    assert [score.scores["incumbent"] for score in scores] == [None, 1.0, None]
    assert scores[0].scores["candidate"] == pytest.approx(2 / 3)
