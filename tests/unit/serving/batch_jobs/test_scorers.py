"""Columns of scored rows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.batch_jobs import scorers
from serving.batch_jobs.schema import Part
from serving.engines.classify import Prediction


@pytest.mark.parametrize(
    ("is_integer", "labels"), [(False, pa.array(["-1", "20"])), (True, pa.array([-1, 20], pa.int64()))]
)
def test_the_label_column_has_the_type_of_the_training_labels(
    is_integer: bool, labels: pa.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(_loaded: Any, texts: list[str], *, batch_size: int) -> list[Prediction]:  # noqa: ARG001
        return [Prediction(text, 0.75, np.array([0.75, 0.25])) for text in texts]

    monkeypatch.setattr(scorers, "predict_texts", predict)
    version = SimpleNamespace(integer_labels=is_integer, typed_label=int if is_integer else str)
    loaded: Any = SimpleNamespace(version=version, classes=("-1", "20"))
    rows = scorers.PartRows(
        pa.table({"text": ["-1", "20"]}),
        Part(number=0, uri="file:///rows.parquet", start=0, first=0, num_rows=2, etag="e"),
        "text",
    )
    assert scorers._classify(loaded, rows, batch_size=2)["label"] == labels
