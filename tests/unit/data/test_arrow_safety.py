"""Columns of Ray Data's pickle type are rejected before a value is read, wherever Arrow files are
read."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray.data  # noqa: F401  registers the type, as in every process that works with it

from tailorbird.config.data import DataConfig
from tailorbird.data.arrow_safety import extension_columns
from tailorbird.data.loader import read_rows
from tailorbird.data.rows import DataError
from tailorbird.data.sharding.shards import _COLUMNS, Shards, file_uri
from tailorbird.data.task_data import ChatData
from tailorbird.evaluation.prediction_store import load_predictions
from tailorbird.storage.s3 import StorageError
from tests.build import predictions
from tests.payload import Payload

PICKLED = {"ARROW:extension:name": "ray.data.arrow_pickled_object", "ARROW:extension:metadata": ""}
"""Field metadata that is sufficient to write such a column."""


def pickled(name: str) -> pa.Field:
    return pa.field(name, pa.large_binary(), metadata=PICKLED)


def written(path: Path, fields: list[pa.Field], row: dict[str, Any]) -> str:
    pq.write_table(pa.Table.from_pylist([row], schema=pa.schema(fields)), path)
    return path.as_uri()


def test_a_pickled_conversation_is_rejected_without_being_read(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    turns = pa.list_(pa.struct([pa.field("role", pa.string()), pickled("content")]))
    messages = [
        {"role": "user", "content": pickle.dumps(Payload(marker))},
        {"role": "assistant", "content": b""},
    ]
    uri = written(tmp_path / "rows.parquet", [pa.field("messages", turns)], {"messages": messages})
    with pytest.raises(DataError, match="messages"):
        read_rows(uri, config=DataConfig(train=uri, messages="messages"), task=ChatData())
    assert not marker.exists()
    with pytest.raises(EOFError):  # the second value is not a pickle
        pq.read_table(tmp_path / "rows.parquet").column("messages").to_pylist()
    assert marker.exists()  # the payload works


@pytest.mark.parametrize("name", ["text", "label", "patient", "unused"])
def test_a_pickled_column_is_rejected_if_the_recipe_names_it_and_is_never_read(
    tmp_path: Path, name: str
) -> None:
    marker = tmp_path / "it-ran"
    names = ("text", "label", "patient", "unused")
    fields = [pickled(column) if column == name else plain(column) for column in names]
    row = dict.fromkeys(names, "a") | {name: pickle.dumps(Payload(marker))}
    uri = written(tmp_path / "rows.parquet", fields, row)
    config = DataConfig(train=uri, groups=("patient",))
    if name == "unused":
        assert read_rows(uri, config=config).texts == ("a",)
    else:
        with pytest.raises(DataError, match=name):
            read_rows(uri, config=config)
    assert not marker.exists()


def test_stored_predictions_with_pickles_are_rejected(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    table = predictions(["a"], ["a"]).to_table()
    index = table.column_names.index("output")
    changed = table.set_column(
        index, pickled("output"), pa.array([pickle.dumps(Payload(marker))], pa.large_binary())
    )
    pq.write_table(changed, tmp_path / "predictions.parquet")
    with pytest.raises(ValueError, match="output"):
        load_predictions((tmp_path / "predictions.parquet").as_uri())
    assert not marker.exists()


def test_shards_with_other_columns_are_rejected(tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    schema = pa.schema(
        [pickled("row_id"), *(pa.field(name, kind) for name, kind in list(_COLUMNS.items())[1:])]
    )
    row: dict[str, Any] = dict.fromkeys(_COLUMNS) | {
        "ids": [1],
        "row_id": pickle.dumps(Payload(marker)),
    }
    path = file_uri(str(tmp_path), 0)
    with pa.ipc.new_file(path, schema) as file:
        file.write_table(pa.Table.from_pylist([row], schema=schema))
    shards = Shards(tmp_path.as_uri(), sizes=(1,), classes=())
    with pytest.raises(StorageError, match="its columns are not those of a shard"):
        shards.read(shards.chunks())
    assert not marker.exists()


def test_arrow_types_are_allowed_and_extension_types_are_detected_at_any_depth() -> None:
    kind = registered()
    unsafe = {
        "list": pa.list_(kind),
        "map": pa.struct([("a", pa.map_(pa.string(), kind))]),
        "dictionary": pa.dictionary(pa.int8(), kind),
    }
    safe = {"id": pa.uuid(), "ids": pa.list_(pa.int32()), "day": pa.date32()}
    assert extension_columns(pa.schema(unsafe | safe)) == list(unsafe)


def plain(name: str) -> pa.Field:
    return pa.field(name, pa.string())


def registered() -> pa.DataType:
    """Return the type that a reader of the file gets."""
    with pa.BufferOutputStream() as sink:
        with pa.ipc.new_stream(sink, pa.schema([pickled("a")])):
            pass
        return pa.ipc.open_stream(sink.getvalue()).schema.field("a").type
