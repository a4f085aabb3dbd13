"""Tests of predictions that a verdict refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.evaluation.predictions import ModelPredictions, VerdictRefused
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
CHANGED = Simulation(num_rows=600)
TABLES = tables_of(CHANGED)
CHAT = Simulation(num_rows=90, chat=True, suites={"general": (0.2, 0.7)})
CHAT_TABLES = tables_of(CHAT)


def with_model(role: str, **changes: Any) -> VerdictInputs:
    changed = ModelPredictions(replace(INPUTS.models[role].clean, **changes))
    return replace(INPUTS, models={**INPUTS.models, role: changed})


@pytest.mark.parametrize(
    ("inputs", "num_rows"), [(replace(INPUTS, test_sha256="cd" * 32), 100), (INPUTS, 99)]
)
def test_changed_or_missing_test_rows_are_refused(inputs: VerdictInputs, num_rows: int) -> None:
    require_same_rows(INPUTS, protocol=protocol_for(100))
    with pytest.raises(VerdictRefused):
        require_same_rows(inputs, protocol=protocol_for(num_rows))


@pytest.mark.parametrize("role", ["incumbent", "candidate", "centroid"])
@pytest.mark.parametrize(
    "change",
    [
        {"row_ids": tuple(str(i) for i in reversed(range(100)))},
        {"labels": ("no",) * 100},
        {"scores": np.full(100, np.nan)},
        {"scores": np.full(100, 0.5)},
    ],
)
def test_misaligned_and_unusable_predictions_of_each_model_are_refused(
    role: str, change: dict[str, object]
) -> None:
    with pytest.raises(VerdictRefused):
        require_same_rows(with_model(role, **change), protocol=protocol_for(100))


def test_the_anchor_must_predict_the_same_rows() -> None:
    anchor = Anchor(INPUTS.candidate.clean.take(range(99, -1, -1)))
    with pytest.raises(VerdictRefused):
        require_same_rows(replace(INPUTS, anchor=anchor), protocol=protocol_for(100))


@pytest.mark.parametrize(
    ("name", "positions"),
    [
        ("candidate_noise", None),
        ("centroid_counterfactual", None),
        ("candidate_noise", range(599)),
        ("candidate_counterfactual", range(99, -1, -1)),
    ],
)
def test_changed_rows_that_a_gate_needs_must_be_those_of_the_test_rows(
    name: str, positions: range | None
) -> None:
    tables = dict(TABLES)
    table = tables.pop(name)
    if positions is not None:
        tables[name] = table.take(positions)
    with pytest.raises(ValueError, match="row"):
        require_same_rows(inputs_of_tables(CHANGED, tables), protocol=protocol_of(CHANGED))


def test_answers_to_other_rows_of_a_suite_or_without_valid_scores_are_refused() -> None:
    name = "candidate_suite-general"
    for answers in (suite_table("full", [1.0] * 99), suite_table("full", [2.0] * 100)):
        tables = CHAT_TABLES | {name: answers}
        with pytest.raises(VerdictRefused, match="suite general"):
            require_same_rows(inputs_of_tables(CHAT, tables), protocol=protocol_of(CHAT))
    missing = dict(CHAT_TABLES)
    del missing[name]
    with pytest.raises(ValueError, match="suite-general"):
        require_same_rows(inputs_of_tables(CHAT, missing), protocol=protocol_of(CHAT))


@pytest.mark.parametrize("measures", [{}, {"token_f1": np.full(90, np.nan)}])
def test_a_metric_without_finite_scores_is_refused(measures: dict[str, np.ndarray]) -> None:
    broken = replace(CHAT_TABLES["candidate"], measures=measures)
    inputs = inputs_of_tables(CHAT, CHAT_TABLES | {"candidate": broken})
    with pytest.raises(VerdictRefused, match="token_f1"):
        reach_verdict(inputs, protocol=protocol_of(CHAT))


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
    chat = Simulation(num_rows=300, chat=True, suites={"general": (0.7, 0.7)})
    tables = tables_of(chat)
    rows = (tables["incumbent_suite-general"].row_ids[0], tables["incumbent"].row_ids[0])
    inputs = replace(inputs_of_tables(chat, tables), trained_rows=TrainedRows({"incumbent": rows}))
    candidate = without_trained_rows(inputs).candidate
    assert (len(candidate.clean), len(candidate.changed["suite-general"])) == (299, 100)


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
    tables = tables_of(SIMULATION)
    trained = TrainedRows({"incumbent": tables["incumbent"].row_ids})
    inputs = replace(inputs_of_tables(SIMULATION, tables), trained_rows=trained)
    with pytest.raises(VerdictRefused):
        reach_verdict(inputs, protocol=protocol_of(SIMULATION))
