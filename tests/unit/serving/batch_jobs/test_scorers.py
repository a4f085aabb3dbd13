"""Columns of scored rows."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from serving.batch_jobs.scorers import SCORERS
from serving.engines.classify import Prediction


@pytest.mark.parametrize(
    ("is_integer", "labels"),
    [(False, pa.array(["-1", "20"])), (True, pa.array([-1, 20], pa.int64()))],
)
def test_the_label_column_has_the_type_of_the_training_labels(
    is_integer: bool, labels: pa.Array
) -> None:
    classes = ("-1", "20")
    typed = int if is_integer else str
    version: Any = SimpleNamespace(integer_labels=is_integer, typed_label=typed, classes=classes)
    predictions = [Prediction(label, 0.75, np.array([0.75, 0.25])) for label in classes]
    assert SCORERS["classification"].columns(predictions, version)["label"] == labels
