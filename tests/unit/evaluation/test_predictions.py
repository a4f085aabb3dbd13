"""Tests of prediction tables and of the check that two tables have the same rows."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align


def three_predictions(model: str = "probe") -> Predictions:
    return Predictions(
        model=model,
        row_ids=("0", "1", "2"),
        labels=("heart", "lung", "lung"),
        outputs=("heart", "heart", "lung"),
        scores=np.array([1.0, 0.0, 1.0]),
        confidences=np.array([0.9, 0.4, 0.7]),
        calibrated=np.array([0.8, 0.5, 0.6]),
        groups={"sex": ("female", "male", "unstated")},
    )


def test_predictions_survive_a_parquet_round_trip() -> None:
    before = replace(three_predictions(), logprobs=((-0.5, -0.25), (-1.0,), ()))
    file = io.BytesIO()
    pq.write_table(before.to_table(), file)
    after = Predictions.from_table(pq.read_table(io.BytesIO(file.getvalue())))
    for name in ("model", "row_ids", "labels", "outputs", "groups", "logprobs"):
        assert getattr(after, name) == getattr(before, name)
    np.testing.assert_array_equal(after.scores, before.scores)
    np.testing.assert_array_equal(after.confidences, before.confidences)
    np.testing.assert_array_equal(after.calibrated, before.calibrated)
    assert Predictions.from_table(three_predictions().to_table()).logprobs is None
    with pytest.raises(ValueError, match="read-only"):
        before.scores[0] = 0


def test_a_table_without_a_column_or_the_name_of_the_model_is_refused() -> None:
    table = three_predictions().to_table()
    with pytest.raises(ValueError, match="not a table of predictions"):
        Predictions.from_table(table.drop_columns(["score"]))
    with pytest.raises(ValueError, match="not a table of predictions"):
        Predictions.from_table(table.replace_schema_metadata(None))


@pytest.mark.parametrize(
    "fields",
    [{"labels": ("heart", "lung")}, {"groups": {"sex": ("f",)}}, {"logprobs": ((-0.5,),)}],
)
def test_columns_of_different_lengths_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(AssertionError, match="for 3 row ids"):
        replace(three_predictions(), **fields)


@pytest.mark.parametrize(
    "changes",
    [
        {"row_ids": ("0", "2", "1")},
        {"labels": ("heart", "lung", "heart")},
        {"scores": np.array([1.0, np.nan, 0.0])},
        {"measures": {"token_f1": np.array([1.0, np.inf, 0.0])}},
        {"row_ids": ("0", "1", "1")},
    ],
)
def test_misaligned_predictions_are_refused(changes: dict[str, object]) -> None:
    align(three_predictions("probe"), three_predictions("full"), three_predictions("centroid"))
    with pytest.raises(VerdictRefused):
        align(three_predictions(), replace(three_predictions("full"), **changes))  # type: ignore[arg-type]


def test_repeated_rows_and_empty_tables_are_refused() -> None:
    twice = replace(three_predictions(), row_ids=("0", "1", "1"))
    with pytest.raises(VerdictRefused):
        align(twice, twice)
    empty = Predictions("probe", (), (), (), np.array([]), np.array([]), np.array([]))
    with pytest.raises(VerdictRefused):
        align(empty, empty)
    two = Predictions(
        "full", ("0", "1"), ("a", "b"), ("a", "b"), np.ones(2), np.ones(2), np.ones(2)
    )
    with pytest.raises(VerdictRefused):
        align(three_predictions(), two)
