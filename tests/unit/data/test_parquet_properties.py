"""A column of any type is read as rows or rejected with a DataError."""

from itertools import chain
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.data.loader import read_rows
from tailorbird.data.rows import DataError
from tailorbird.data.task_data import ChatData, ClassificationData, DataTask
from tests.unit.data.parquet_rows import config_of

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
TEXTS = (
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
)
SCALARS = (
    *TEXTS,
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
    if type_ in TEXTS:
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


NOT_UTF_8 = pa.array([b"\xff", b"a", b"b"]).view(pa.string())


@given(
    name=st.sampled_from(("text", "label", "area", "messages")),
    array=ARRAYS,
    task=st.sampled_from(sorted(TASKS)),
)
@example(name="text", array=NOT_UTF_8, task="classification")
@example(name="area", array=NOT_UTF_8, task="classification")
def test_a_column_of_any_type_is_read_or_rejected(
    name: str, array: pa.Array, task: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "rows.parquet"
    try:
        pq.write_table(pa.table(COLUMNS | {name: array}), path)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return  # Parquet has no such type
    data, fields = TASKS[task]
    try:
        rows = read_rows(path.as_uri(), config=config_of(path.as_uri(), **fields), task=data)
    except DataError:
        return
    for text in chain(rows.texts, rows.labels, *rows.groups.values()):
        text.encode()
