"""Read columns of Parquet files with Arrow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.arrow_safety import extension_columns
from tailorbird.data.rows import NO_GROUP, Conversation, DataError
from tailorbird.storage import s3

PART_BYTES = 1 << 20
ANY_TYPE = "string, integer, boolean or date"
ROLES = ("system", "user", "assistant")
TEXT_TYPES = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_TYPES = {
    "string": TEXT_TYPES,
    "string or integer": (*TEXT_TYPES, pa.types.is_integer),
    ANY_TYPE: (*TEXT_TYPES, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date),
}


def texts_of(table: pa.Table, name: str, *, uri: str, first: int) -> tuple[str, ...]:
    """Return a text column of a table that begins at row `first` of `uri`; DataError for another type or a null."""
    return read_strings(table, name, uri=uri, first=first, allowed="string")


def groups_of(table: pa.Table, name: str, *, uri: str, first: int) -> tuple[str, ...]:
    """Return a group column, where nulls are a group of their own; DataError for an unsupported type."""
    return read_strings(table, name, uri=uri, first=first, fill=NO_GROUP)


def conversations_of(table: pa.Table, name: str, *, uri: str, first: int) -> list[Conversation]:
    """Return a column of lists of `{role, content}` as conversations; DataError for other values."""
    conversations = []
    for position, messages in enumerate(table.column(name).to_pylist(), start=first):
        turns: list[Any] = messages if isinstance(messages, list) else [None]
        for turn in turns:
            if not (isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)):
                raise DataError(
                    f"{uri}: column {name!r} holds no conversation in row {position}; it takes a list of "
                    f"{{role, content}}, role one of {', '.join(ROLES)}, content a text"
                )
        conversations.append(tuple((turn["role"], turn["content"]) for turn in turns))
    return conversations


def read_table(uri: str, *, columns: Sequence[str]) -> pa.Table:
    """Read columns of a Parquet file, or of every `*.parquet` under a folder in the order of their paths.

    Only these columns are downloaded. Raises DataError, also for zero rows.
    """
    tables = []
    for name in parquet_files(uri):
        with open_parquet(name, columns=columns) as file:
            tables.append(file.read(columns=list(columns)))
    table = concat_tables(tables, uri=uri)
    if table.num_rows == 0:
        raise DataError(f"{uri} has no rows; give a Parquet file or folder with at least one row")
    return table


def concat_tables(tables: list[pa.Table], *, uri: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{uri}: its files do not have the same column types ({error}); write them alike") from None


def parquet_files(uri: str) -> list[str]:
    """Return the URIs of the Parquet files at or under `uri`, sorted; raises DataError if there are none."""
    try:
        files = storage.list_files(uri)
    except s3.StorageError as error:
        raise DataError(f"cannot read {uri}: {error}") from None
    if files == [uri]:
        return files
    parquet = [name for name in files if name.endswith(".parquet")]
    if not parquet:
        raise DataError(f"{uri} holds no .parquet file ({len(files)} others); give a Parquet file or a folder of them")
    return sorted(parquet)


@contextmanager
def open_parquet(uri: str, *, columns: Sequence[str], in_parts: bool = False) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file with these columns, to read it at once or, `in_parts`, in little memory with more retries.

    Raises DataError, also from within the block, if a column is missing or unsafe (see `extension_columns`), or the
    file cannot be read.
    """
    reading = {"pre_buffer": False, "buffer_size": PART_BYTES} if in_parts else {"pre_buffer": True}
    try:
        filesystem, path = s3.filesystem(uri, retry_policy=s3.PERSISTENT if in_parts else s3.STANDARD)
        with filesystem.open_input_file(path) as source, pq.ParquetFile(source, **reading) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                has = ", ".join(names)
                raise DataError(f"{uri} has no column {missing[0]!r}; it has {has}. Correct the recipe's data section")
            for column in extension_columns(file.schema_arrow, columns=columns):
                raise DataError(
                    f"{uri}: column {column!r} is {file.schema_arrow.field(column).type}, whose values code would make;"
                    " write it as plain text, numbers or lists of them"
                )
            yield file
    except s3.StorageError as error:
        raise DataError(f"cannot read {uri}: {error}") from None
    except (pa.ArrowInvalid, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, pa.ArrowInvalid):
            raise DataError(f"{uri} is not a readable Parquet file ({reason}); write it again as Parquet") from None
        raise DataError(f"cannot read {uri}: {reason}; check that it is there, whole, and yours to read") from None


def read_strings(
    table: pa.Table, name: str, *, uri: str, first: int, allowed: str = ANY_TYPE, fill: str | None = None
) -> tuple[str, ...]:
    """Return a column as strings, nulls as `fill`; DataError for a type that is not `allowed`, or a null without it."""
    column = table.column(name)
    plain = plain_type(column.type)
    if not any(test(plain) for test in _TYPES[allowed]):
        raise DataError(
            f"{uri}: column {name!r} is {column.type}, allowed: {allowed}; name another column or convert it"
        )
    if column.null_count and fill is None:
        position = first + column.is_null().index(True).as_py()
        part = f" from row {first} on" if first else ""
        count = f"{column.null_count} of {table.num_rows} rows{part} (first: row {position})"
        raise DataError(f"{uri}: column {name!r} is null in {count}; fill or drop them")
    values = column.cast(plain).cast(pa.large_string()).to_pylist()
    return tuple(fill if value is None else value for value in values) if fill is not None else tuple(values)


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the type of a dictionary-encoded column's values; any other type as it is."""
    return type_.value_type if pa.types.is_dictionary(type_) else type_
