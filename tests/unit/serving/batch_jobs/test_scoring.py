"""Specifications of batches, and the parts of their input."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.batch_jobs.schema import InputFile
from serving.batch_jobs.scorers import SCORERS
from serving.batch_jobs.scoring import PART_BYTES, _read_bytes, new_batch, parts_of
from serving.engines.classify import Prediction
from tailorbird.registry.versions import ModelVersion, Prompting
from tests import build


def version(prompting: Prompting | None = None) -> ModelVersion:
    return build.version(prompting=prompting)


def _file(uri: str, *, num_rows: int, read_bytes: int = 0) -> InputFile:
    return InputFile(uri=uri, etag="", size_bytes=0, num_rows=num_rows, read_bytes=read_bytes)


@given(st.lists(st.integers(0, 300), max_size=8), st.integers(1, 100))
def test_every_row_is_in_one_part_and_no_part_spans_files(sizes: list[int], size: int) -> None:
    inputs = [
        _file(f"s3://lake/{number}", num_rows=num_rows) for number, num_rows in enumerate(sizes)
    ]
    parts = list(parts_of(inputs, size=size))
    assert [part.number for part in parts] == list(range(len(parts)))
    positions = [(part.uri, part.start + row) for part in parts for row in range(part.num_rows)]
    assert positions == [(file.uri, row) for file in inputs for row in range(file.num_rows)]
    assert all(0 < part.num_rows <= size for part in parts)
    assert [part.first for part in parts] == [
        sum(part.num_rows for part in parts[:number]) for number in range(len(parts))
    ]


def test_only_the_columns_that_are_read_count_for_the_size(tmp_path: Path) -> None:
    messages = [[{"role": "user", "content": "x" * 1000 + str(row)}] for row in range(50)]
    table = pa.table({"messages": messages, "other": [str(row) * 5000 for row in range(50)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=20)
    metadata = pq.read_metadata(tmp_path / "rows.parquet")
    assert 50_000 < _read_bytes(metadata, ["messages"]) < 60_000
    assert _read_bytes(metadata, ["messages", "other"]) > 300_000
    long = _file("s3://lake/long", num_rows=100, read_bytes=100 * (PART_BYTES // 8))
    assert [part.num_rows for part in parts_of([long], size=50)] == [8] * 12 + [4]


@pytest.mark.parametrize("is_integer", [False, True])
def test_the_columns_have_the_defaults_and_the_types_of_the_training_data(is_integer: bool) -> None:
    uris = {"input": "s3://lake/in/", "output": "s3://lake/out/"}
    assert new_batch(version(), **uris).column == "text"
    assert new_batch(version(Prompting(system=None, max_new_tokens=4)), **uris).column == "prompt"
    classes = ("-1", "20")
    classifier = build.version(classes=classes, integer_labels=is_integer)
    predictions = [Prediction(label, 0.75, np.array([0.75, 0.25])) for label in classes]
    labels = SCORERS["classification"].columns(predictions, classifier)["label"]
    assert labels == (pa.array([-1, 20], pa.int64()) if is_integer else pa.array(["-1", "20"]))
