"""Tests of predictions that a verdict refuses."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tailorbird.evaluation.predictions import ModelPredictions, VerdictRefused
from tailorbird.evaluation.verdict.inputs import (
    Anchor,
    VerdictInputs,
    model_predictions,
    require_same_rows,
)
from tests.unit.evaluation.simulated import Simulation, inputs_of_tables, protocol_of, tables_of
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


def test_changed_or_missing_test_rows_are_refused() -> None:
    require_same_rows(INPUTS, protocol=protocol_for(100))
    with pytest.raises(VerdictRefused, match="the test rows changed: their sha256 is cdcd"):
        require_same_rows(replace(INPUTS, test_sha256="cd" * 32), protocol=protocol_for(100))
    with pytest.raises(VerdictRefused, match="100 rows have predictions, but the protocol has 99"):
        require_same_rows(INPUTS, protocol=protocol_for(99))
    assert issubclass(VerdictRefused, ValueError)


@pytest.mark.parametrize("role", ["incumbent", "candidate", "centroid"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row_ids": tuple(str(i) for i in reversed(range(100)))}, "row ids"),
        ({"labels": ("no",) * 100}, "labels|score"),
        ({"scores": np.full(100, np.nan)}, "finite"),
        ({"scores": np.full(100, 0.5)}, "1 if the output equals the label"),
    ],
)
def test_misaligned_and_unusable_predictions_of_each_model_are_refused(
    role: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(VerdictRefused, match=message):
        require_same_rows(with_model(role, **change), protocol=protocol_for(100))


def test_the_anchor_must_predict_the_same_rows() -> None:
    table = INPUTS.candidate.clean
    anchor = Anchor(replace(table, row_ids=table.row_ids[::-1]))
    with pytest.raises(VerdictRefused, match="row ids"):
        require_same_rows(replace(INPUTS, anchor=anchor), protocol=protocol_for(100))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "candidate_noise",
            None,
            "the recipe has a gate on noise rows; give all models' predictions",
        ),
        ("centroid_counterfactual", None, "the recipe has a gate on counterfactual rows"),
        ("candidate_noise", {"positions": range(599)}, "must have one row per test row"),
        ("candidate_counterfactual", {"positions": range(99, -1, -1)}, "row ids|rows"),
    ],
)
def test_changed_rows_that_a_gate_needs_must_be_those_of_the_test_rows(
    name: str, change: dict[str, Any] | None, message: str
) -> None:
    tables = {other: table for other, table in TABLES.items() if other != name}
    if change is not None:
        tables[name] = TABLES[name].take(change["positions"])
    with pytest.raises(ValueError, match=message):
        require_same_rows(inputs_of_tables(CHANGED, tables), protocol=protocol_of(CHANGED))


def test_answers_to_other_rows_of_a_suite_or_without_valid_scores_are_refused() -> None:
    name = "candidate_suite-general"
    for answers, message in (
        (suite_table("full", [1.0] * 99), "answer different rows of the suite general"),
        (suite_table("full", [2.0] * 100), "has no scores from 0 to 1 for the suite general"),
    ):
        with pytest.raises(VerdictRefused, match=message):
            require_same_rows(
                inputs_of_tables(CHAT, CHAT_TABLES | {name: answers}), protocol=protocol_of(CHAT)
            )
    missing = {other: table for other, table in CHAT_TABLES.items() if other != name}
    with pytest.raises(
        ValueError,
        match="the recipe has a gate on suite-general rows; give all models' predictions",
    ):
        require_same_rows(inputs_of_tables(CHAT, missing), protocol=protocol_of(CHAT))


def test_the_tables_of_a_role_are_found_by_their_names() -> None:
    model = model_predictions("candidate", TABLES | CHAT_TABLES)
    assert sorted(model.changed) == ["counterfactual", "noise", "suite-general"]
    assert model_predictions("centroid", TABLES).clean.model == "centroid"
