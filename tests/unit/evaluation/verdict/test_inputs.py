"""Tests of predictions that a verdict refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused
from tailorbird.evaluation.verdict.inputs import (
    Anchor,
    TrainedRows,
    VerdictInputs,
    require_same_rows,
    without_trained_rows,
)
from tailorbird.evaluation.verdict.reach import reach_verdict
from tests.unit.evaluation.simulated import (
    Simulation,
    inputs_of_tables,
    protocol_of,
    tables_of,
)
from tests.unit.evaluation.simulated_suites import suite_table
from tests.unit.evaluation.verdict.tables import inputs_of, models, predictions, protocol_for

INPUTS = inputs_of(*models(50, 20, 10, 20), predictions("centroid", np.arange(100) < 60))
REORDERED = range(99, -1, -1)
UNUSABLE: tuple[dict[str, Any], ...] = (
    {"row_ids": tuple(map(str, REORDERED))},
    {"labels": ("no",) * 100},
    {"scores": np.full(100, np.nan)},
    {"scores": np.full(100, 0.5)},
)


def with_model(role: str, **changes: Any) -> VerdictInputs:
    changed = ModelPredictions(replace(INPUTS.models[role].clean, **changes))
    return replace(INPUTS, models={**INPUTS.models, role: changed})


@pytest.mark.parametrize(
    ("inputs", "num_rows"),
    [
        (replace(INPUTS, test_sha256="cd" * 32), 100),
        (INPUTS, 99),
        (replace(INPUTS, anchor=Anchor(INPUTS.candidate.clean.take(REORDERED))), 100),
        *((with_model(role, **change), 100) for role in INPUTS.models for change in UNUSABLE),
    ],
)
def test_changed_missing_misaligned_and_unusable_predictions_are_refused(
    inputs: VerdictInputs, num_rows: int
) -> None:
    require_same_rows(INPUTS, protocol=protocol_for(100))
    with pytest.raises(VerdictRefused):
        require_same_rows(inputs, protocol=protocol_for(num_rows))


ROWS = Simulation(num_rows=600)
TABLES = tables_of(ROWS)
CHAT = Simulation(num_rows=90, chat=True, suites={"general": (0.2, 0.7)})
CHAT_TABLES = tables_of(CHAT)
SUITE = "candidate_suite-general"


@pytest.mark.parametrize(
    ("name", "table", "problem"),
    [
        ("candidate_noise", None, "gate on noise rows"),
        ("centroid_counterfactual", None, "gate on counterfactual rows"),
        ("candidate_noise", TABLES["candidate_noise"].take(range(599)), "row per test row"),
        (
            "candidate_counterfactual",
            TABLES["candidate_counterfactual"].take(REORDERED),
            "differ in their row ids",
        ),
        (SUITE, None, "gate on suite-general rows"),
        (SUITE, suite_table("full", [1.0] * 99), "different rows of the suite general"),
        (SUITE, suite_table("full", [2.0] * 100), "scores from 0 to 1 for the suite general"),
        ("candidate", replace(CHAT_TABLES["candidate"], measures={}), "token_f1"),
        (
            "candidate",
            replace(CHAT_TABLES["candidate"], measures={"token_f1": np.full(90, np.nan)}),
            "token_f1",
        ),
    ],
)
def test_changed_rows_suites_and_measures_must_be_those_that_the_protocol_needs(
    name: str, table: Predictions | None, problem: str
) -> None:
    simulation = CHAT if name in (SUITE, "candidate") else ROWS
    tables = dict(CHAT_TABLES if simulation is CHAT else TABLES)
    del tables[name]
    if table is not None:
        tables[name] = table
    with pytest.raises(ValueError if table is None else VerdictRefused, match=problem):
        reach_verdict(inputs_of_tables(simulation, tables), protocol=protocol_of(simulation))


TRAINED = TrainedRows(
    {"incumbent": tuple(f"r{row}" for row in range(600)), "centroid": ("r599", "r601"), "few": None}
)
SIMULATION = Simulation(trained=TRAINED)


def test_rows_that_a_model_was_trained_on_leave_all_tables_of_test_rows() -> None:
    inputs = inputs_of_tables(SIMULATION, tables_of(SIMULATION))
    remaining = without_trained_rows(inputs)
    excluded = {*(f"r{row}" for row in range(600)), "r601"}
    for role, model in inputs.models.items():
        tables = [(model.clean, remaining.models[role].clean)]
        for name, table in model.changed.items():
            tables.append((table, remaining.models[role].changed[name]))
        for before, after in tables:
            rows = [row for row in before.row_ids if row.partition("|")[0] not in excluded]
            assert 0 < len(rows) < len(before)
            assert after.row_ids == tuple(rows)
    nothing = replace(inputs, trained_rows=TrainedRows({"incumbent": ()}))
    assert without_trained_rows(nothing).models == inputs.models


def test_the_rows_of_a_suite_remain() -> None:
    rows = (CHAT_TABLES[SUITE].row_ids[0], CHAT_TABLES["incumbent"].row_ids[0])
    trained = TrainedRows({"incumbent": rows})
    inputs = replace(inputs_of_tables(CHAT, CHAT_TABLES), trained_rows=trained)
    candidate = without_trained_rows(inputs).candidate
    assert (len(candidate.clean), len(candidate.changed["suite-general"])) == (89, 100)


def test_an_incumbent_that_knows_a_third_of_the_rows_does_not_keep_a_better_candidate_away() -> (
    None
):
    simulation = Simulation(num_rows=3000, incumbent=0.70, candidate=0.76, gates=False)
    tables = tables_of(simulation)
    known = np.arange(3000) < 1000
    incumbent = tables["incumbent"]
    outputs = np.where(known, incumbent.labels, incumbent.outputs).tolist()
    tables["incumbent"] = replace(
        incumbent, outputs=tuple(outputs), scores=np.where(known, 1.0, incumbent.scores)
    )
    inputs = inputs_of_tables(simulation, tables)
    protocol = protocol_of(simulation)
    trained = TrainedRows({"incumbent": incumbent.row_ids[:1000], "centroid": None})
    before = reach_verdict(inputs, protocol=protocol)
    verdict = reach_verdict(replace(inputs, trained_rows=trained), protocol=protocol)
    assert (before.outcome, before.n) == ("STAY", 3000)
    assert (verdict.outcome, verdict.n) == ("FINE_TUNE", 2000)
    [rows] = [sentence for sentence in verdict.sentences if "was trained on" in sentence]
    assert "incumbent was trained on 1,000 of the 3,000 test rows (33.3%)" in rows
    assert "the training rows of centroid are unknown" in rows


def test_models_that_were_trained_on_all_rows_cannot_be_compared() -> None:
    trained = TrainedRows({"incumbent": INPUTS.incumbent.clean.row_ids})
    with pytest.raises(VerdictRefused):
        reach_verdict(replace(INPUTS, trained_rows=trained), protocol=protocol_for(100))
