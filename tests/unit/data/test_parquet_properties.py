"""Any Parquet file is read as rows or rejected with a DataError: damaged files, and columns of any
type."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.config.data import DataConfig
from tailorbird.data.loader import read_rows
from tailorbird.data.rows import DataError
from tailorbird.data.task_data import ChatData, ClassificationData, DataTask

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
COLUMNS = {
    "text": ["a", "é", ""],
    "label": ["x", "y", "x"],
    "area": [1, None, 3],
    "messages": [TURNS] * 3,
}
TASKS: dict[str, tuple[DataTask, dict[str, Any]]] = {
    "classification": (ClassificationData(), {"groups": ["area"]}),
    "chat": (ChatData(), {"messages": "messages"}),
}
SCALARS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.binary(),
    pa.int8(),
    pa.uint64(),
    pa.float16(),
    pa.bool_(),
    pa.date32(),
    pa.timestamp("ns", "UTC"),
    pa.duration("s"),
    pa.null(),
    pa.decimal128(9, 2),
    pa.time64("us"),
    pa.dictionary(pa.int32(), pa.string()),
)
TYPES = st.recursive(
    st.sampled_from(SCALARS),
    lambda inner: (
        inner.map(pa.list_)
        | inner.map(lambda type_: pa.struct([("role", pa.string()), ("content", type_)]))
    ),
    max_leaves=2,
)
ROLES = st.sampled_from(("user", "assistant", "system", "tool", None))


def values_of(type_: pa.DataType) -> st.SearchStrategy[Any]:
    """Return values of a type, with nulls."""
    if pa.types.is_list(type_):
        return st.none() | st.lists(values_of(type_.value_type), max_size=3)
    if pa.types.is_struct(type_):
        return st.none() | st.fixed_dictionaries(
            {"role": ROLES, "content": values_of(type_.field("content").type)}
        )
    if pa.types.is_binary(type_):
        return st.none() | st.binary(max_size=4)
    if (
        pa.types.is_dictionary(type_)
        or pa.types.is_large_string(type_)
        or pa.types.is_string(type_)
    ):
        return st.none() | st.text(max_size=4)
    return st.none() | st.sampled_from((0, 1))


def array_of(type_: pa.DataType, values: list[Any]) -> pa.Array:
    try:
        return pa.array(values, type=type_)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        return pa.nulls(len(values), type=type_)


ARRAYS = TYPES.flatmap(
    lambda type_: st.lists(values_of(type_), min_size=3, max_size=3).map(
        lambda v: array_of(type_, v)
    )
)


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes, str], None]:
    """Return a function that reads the bytes of a file as rows of a task."""
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"

    def read_bytes(content: bytes, task: str) -> None:
        path.write_bytes(content)
        data, fields = TASKS[task]
        try:
            rows = read_rows(
                path.as_uri(), config=DataConfig(train=path.as_uri(), **fields), task=data
            )
        except DataError:
            return
        texts = [
            *rows.texts,
            *rows.labels,
            *(value for column in rows.groups.values() for value in column),
        ]
        assert all(text.encode() is not None for text in texts)

    return read_bytes


def written(columns: dict[str, Any], folder: Path) -> bytes:
    path = folder / "written.parquet"
    pq.write_table(pa.table(columns), path)
    return path.read_bytes()


@given(
    name=st.sampled_from(("text", "label", "area", "messages")),
    array=ARRAYS,
    task=st.sampled_from(sorted(TASKS)),
)
@example(
    name="text", array=pa.array([b"\xff", b"a", b"b"]).view(pa.string()), task="classification"
)
@example(
    name="area", array=pa.array([b"\xff", b"a", b"b"]).view(pa.string()), task="classification"
)
def test_a_column_of_any_type_is_read_or_rejected(
    name: str,
    array: pa.Array,
    task: str,
    tmp_path_factory: pytest.TempPathFactory,
    read: Callable[[bytes, str], None],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        content = written(COLUMNS | {name: array}, folder)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return  # Parquet has no such type
    read(content, task)
