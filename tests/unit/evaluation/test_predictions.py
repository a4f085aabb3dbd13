"""Tests of prediction tables and of the check that two tables have the same rows."""

import io
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tests import build

TABLE = build.predictions(
    "aab", "abb", calibrated=np.array([0.8, 0.5, 0.6]), groups={"sex": tuple("fmx")}
)


def test_predictions_survive_a_parquet_round_trip() -> None:
    measures = {"token_f1": np.array([0.5, 1.0, 0.0])}
    before = replace(TABLE, logprobs=((-0.5, -0.25), (-1.0,), ()), measures=measures)
    file = io.BytesIO()
    pq.write_table(before.to_table(), file)
    after = Predictions.from_table(pq.read_table(io.BytesIO(file.getvalue())))
    for name in ("model", "row_ids", "labels", "outputs", "groups", "logprobs"):
        assert getattr(after, name) == getattr(before, name)
    for name in ("scores", "confidences", "calibrated"):
        np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
    np.testing.assert_array_equal(after.measures["token_f1"], measures["token_f1"])
    assert Predictions.from_table(TABLE.to_table()).logprobs is None
    with pytest.raises(ValueError, match="read-only"):
        before.scores[0] = 0


def test_a_table_without_a_column_or_the_name_of_the_model_is_refused() -> None:
    table = TABLE.to_table()
    for broken in (table.drop_columns(["score"]), table.replace_schema_metadata(None)):
        with pytest.raises(ValueError, match="not a table of predictions"):
            Predictions.from_table(broken)


@pytest.mark.parametrize("rows", [[0, 1, 1], []])
def test_repeated_or_no_rows_are_refused(rows: list[int]) -> None:
    with pytest.raises(VerdictRefused):
        align(TABLE.take(rows), TABLE.take(rows))
