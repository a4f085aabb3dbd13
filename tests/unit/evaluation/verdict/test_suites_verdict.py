"""Verdicts, reports and cards of chat runs with regression suites."""

from dataclasses import replace

import numpy as np
import pytest

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
