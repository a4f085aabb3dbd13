"""Read columns of Parquet files with Arrow."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.arrow_safety import extension_columns
from tailorbird.data.conversations import ROLES, WeightedConversation, conversation_of
from tailorbird.data.rows import NO_GROUP, DataError
from tailorbird.storage import s3

PART_BYTES = 1 << 20
Kind = Literal["string", "integer", "boolean", "date", "messages", "other"]
ANY_KIND: tuple[Kind, ...] = ("string", "integer", "boolean", "date")
LABEL_KINDS: tuple[Kind, ...] = ("string", "integer")
_KINDS: tuple[tuple[Kind, tuple[Any, ...]], ...] = (
    ("string", (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)),
    ("integer", (pa.types.is_integer,)),
    ("boolean", (pa.types.is_boolean,)),
    ("date", (pa.types.is_date,)),
)


def texts_of(table: pa.Table, name: str, *, uri: str, first: int) -> tuple[str, ...]:
    """Return a text column of a table that starts at row `first` of `uri`; raise DataError for
    other types or nulls."""
    return read_strings(table, name, uri=uri, first=first, allowed=("string",))


def groups_of(table: pa.Table, name: str, *, uri: str, first: int) -> tuple[str, ...]:
    """Return a group column, with nulls as the group NO_GROUP; raise DataError for unsupported
    types."""
    return read_strings(table, name, uri=uri, first=first, fill=NO_GROUP)


def conversations_of(
    table: pa.Table, name: str, *, uri: str, first: int
) -> list[WeightedConversation]:
    """Return a column of lists of `{role, content, weight}` as conversations; raise DataError for
    other values."""
    conversations = []
    for position, messages in enumerate(_values(table.column(name), name, uri=uri), start=first):
        try:
            conversations.append(
                conversation_of(messages if isinstance(messages, list) else [None])
            )
        except ValueError as error:
            raise DataError(
                f"{uri}: column {name!r} has no conversation in row {position}; give a list of "
                f"{{role, content}}, where role is one of {', '.join(ROLES)} and content is a "
                f"string ({error})"
            ) from None
    return conversations


def has_integers(uris: Sequence[str], *, column: str) -> bool:
    """Return True if a column holds integers of at most 64 bits, with a sign, in the first file of
    each URI."""
    types = []
    for uri in uris:
        with open_parquet(parquet_files(uri)[0], columns=[column]) as file:
            types.append(plain_type(file.schema_arrow.field(column).type))
    return all(pa.types.is_integer(kind) and kind != pa.uint64() for kind in types)


def read_table(uri: str, *, columns: Sequence[str]) -> pa.Table:
    """Read columns of a Parquet file, or of every `*.parquet` under a folder in the order of their
    paths.

    Only these columns are downloaded. Raises DataError if they cannot be read, or if there are no
    rows.
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
        raise DataError(
            f"{uri}: the column types of the files differ ({error}); write all files with the same "
            "schema"
        ) from None


def parquet_files(uri: str) -> list[str]:
    """Return the sorted URIs of the Parquet files at or under `uri`; raise DataError if there are
    none."""
    try:
        files = storage.list_files(uri)
    except s3.StorageError as error:
        raise DataError(f"cannot read {uri}: {error}") from None
    if files == [uri]:
        return files
    parquet = [name for name in files if name.endswith(".parquet")]
    if not parquet:
        raise DataError(
            f"{uri} contains no .parquet file ({len(files)} other files); give a Parquet file or a "
            "folder of them"
        )
    return sorted(parquet)


@contextmanager
def open_parquet(
    uri: str, *, columns: Sequence[str], in_parts: bool = False
) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file that must have these columns; `in_parts` reads it with little memory and
    more retries.

    Raises DataError if a column is missing or unsafe (see `extension_columns`), or if the file
    cannot be read, also for errors inside the block.
    """
    if in_parts:
        reading = {"pre_buffer": False, "buffer_size": PART_BYTES}
    else:
        reading = {"pre_buffer": True}
    try:
        filesystem, path = s3.filesystem(
            uri, retry_policy=s3.PERSISTENT if in_parts else s3.STANDARD
        )
        with filesystem.open_input_file(path) as source, pq.ParquetFile(source, **reading) as file:
            names = file.schema_arrow.names
            if missing := [column for column in columns if column not in names]:
                has = ", ".join(names)
                raise DataError(
                    f"{uri} has no column {missing[0]!r}; it has {has}. Correct the recipe or the "
                    "file"
                )
            for column in extension_columns(file.schema_arrow, columns=columns):
                raise DataError(
                    f"{uri}: column {column!r} has type {file.schema_arrow.field(column).type}, "
                    "whose values can run code when read; write it as strings, numbers or lists "
                    "of them"
                )
            yield file
    except s3.StorageError as error:
        raise DataError(f"cannot read {uri}: {error}") from None
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, OSError):
            raise DataError(
                f"cannot read {uri}: {reason}; check that it exists, is complete and can be read"
            ) from None
        raise DataError(
            f"{uri} is not a valid Parquet file ({reason}); write it again as Parquet, or convert "
            "JSON Lines or CSV with `tailorbird data put`"
        ) from None


def read_strings(
    table: pa.Table,
    name: str,
    *,
    uri: str,
    first: int,
    allowed: Sequence[Kind] = ANY_KIND,
    fill: str | None = None,
) -> tuple[str, ...]:
    """Return a column as strings with nulls as `fill`.

    Raises DataError if the kind is not `allowed`, or for nulls if `fill` is None.
    """
    column = table.column(name)
    if kind_of(column.type) not in allowed:
        raise DataError(
            f"{uri}: column {name!r} has type {column.type}, allowed: {' or '.join(allowed)}; name "
            "another column or convert it"
        )
    if column.null_count and fill is None:
        position = first + column.is_null().index(True).as_py()
        raise DataError(
            f"{uri}: column {name!r} is null, first in row {position}; fill or drop nulls"
        )
    values = _values(column.cast(plain_type(column.type)).cast(pa.large_string()), name, uri=uri)
    if fill is not None:
        return tuple(fill if value is None else value for value in values)
    return tuple(values)


def _values(column: pa.ChunkedArray, name: str, *, uri: str) -> list[Any]:
    """Return the values of a column; raise DataError for strings that are not UTF-8, which Arrow
    does not check."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError as error:
        raise DataError(
            f"{uri}: column {name!r} is not UTF-8 ({error}); write it again as UTF-8"
        ) from None


def kind_of(type_: pa.DataType) -> Kind:
    """Return the kind of columns of this type."""
    plain = plain_type(type_)
    for kind, tests in _KINDS:
        if any(test(plain) for test in tests):
            return kind
    if (pa.types.is_list(plain) or pa.types.is_large_list(plain)) and pa.types.is_struct(
        plain.value_type
    ):
        turns = plain.value_type
        if {"role", "content"} <= {turns.field(index).name for index in range(turns.num_fields)}:
            return "messages"
    return "other"


def plain_type(type_: pa.DataType) -> pa.DataType:
    """Return the value type of a dictionary type; any other type unchanged."""
    if pa.types.is_dictionary(type_):
        return type_.value_type
    return type_
