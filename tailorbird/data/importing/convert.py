"""Check a JSON Lines or CSV file, and convert it to Parquet in bounded memory."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird.data.importing.chat_formats import (
    TOOL_FIELDS,
    ChatFormat,
    chat_format_of,
    messages_of,
)
from tailorbird.data.importing.records import LineFault, Record, read_records
from tailorbird.data.rows import DataError

MESSAGES = "messages"  # column of the converted conversations
TABLE = "table"  # format of rows with plain columns
GROUP_ROWS = 1 << 13
GROUP_CHARACTERS = 1 << 25
"""Numbers of rows and of characters after which a row group is written."""
MAX_LISTED = 5
INTEGERS = range(-(2**63), 2**63)
NAMES: dict[type, str] = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    list: "list",
    dict: "object",
    NoneType: "null",
}
ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}

Report = Callable[[str, int, int], None]
"""Receives what is done, and the numbers of bytes that are done and in total."""


@dataclass
class Schema:
    """What a file contains, completed while its lines are checked."""

    chat_format: ChatFormat | None = None
    num_rows: int = 0
    has_weights: bool = False
    columns: dict[str, type | None] = field(default_factory=dict)
    """Type of each plain column, None if all its values are null."""

    @property
    def format_name(self) -> str:
        if self.chat_format is None:
            return TABLE
        return self.chat_format.name

    def arrow(self) -> pa.Schema:
        fields = {}
        if self.chat_format:
            turn = {"role": pa.string(), "content": pa.string()}
            if self.has_weights:
                turn["weight"] = pa.int8()
            fields[MESSAGES] = pa.list_(pa.struct(turn))
        for name, kind in self.columns.items():
            fields[name] = ARROW_TYPES[kind or str]
        return pa.schema(fields)


def check_file(path: Path, *, report: Report) -> Schema:
    """Read a file and return what it contains.

    Raises DataError with the line numbers if lines cannot be read or kept, and for a file without
    rows.
    """
    schema = Schema()
    listed = list[str]()
    num_faults = 0
    with _file_errors(path):
        for row in _rows(path, schema, activity=f"checking {path.name}", report=report):
            if isinstance(row, LineFault):
                num_faults += 1
                if num_faults <= MAX_LISTED:
                    listed.append(f"\n  line {row.line}: {row.reason}")
    if num_faults > MAX_LISTED:
        listed.append(f"\n  and {num_faults - MAX_LISTED:,} more")
    if listed:
        raise DataError(
            f"{path} has lines that cannot be used ({num_faults:,}); nothing was written:"
            + "".join(listed)
        )
    if not schema.num_rows:
        raise DataError(f"{path} has no rows; give a file with at least one")
    if schema.chat_format is None and len(schema.columns) < 2:
        raise DataError(
            f"{path} has only the column {next(iter(schema.columns))!r}; give a text and a label "
            "or answer"
        )
    return schema


def write_parquet(path: Path, target: Path, *, schema: Schema, report: Report) -> None:
    """Write the rows of a checked file to a Parquet file; raise DataError if the file was changed
    since."""
    arrow = schema.arrow()
    try:
        with _file_errors(path), pq.ParquetWriter(target, arrow) as writer:
            for group in _row_groups(path, schema, report=report):
                writer.write_table(pa.Table.from_pylist(group, schema=arrow))
    except pa.ArrowInvalid as error:  # an integer that a column of numbers cannot represent
        raise DataError(
            f"{path} cannot be written as Parquet ({error}); write these values as strings"
        ) from None


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """Raise DataError if the file cannot be read, or the temporary file cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"{path} cannot be read or converted: {error}; check its permissions and the space in "
            "the temporary folder"
        ) from None


def _row_groups(path: Path, schema: Schema, *, report: Report) -> Iterator[list[dict[str, object]]]:
    """Yield the rows of a checked file in groups; raise DataError for a line that does not fit its
    schema."""
    again = replace(schema, num_rows=0, columns=dict(schema.columns))
    group: list[dict[str, object]] = []
    size = 0
    for row in _rows(path, again, activity=f"converting {path.name}", report=report):
        if isinstance(row, LineFault):
            raise DataError(f"{path} was changed while it was read; import it again")
        group.append(row)
        size += _num_characters(row)
        if len(group) >= GROUP_ROWS or size >= GROUP_CHARACTERS:
            yield group
            group = []
            size = 0
    if group:
        yield group
    if again != schema:
        raise DataError(f"{path} was changed while it was read; import it again")


def _rows(
    path: Path, schema: Schema, *, activity: str, report: Report
) -> Iterator[dict[str, object] | LineFault]:
    """Yield each line as the columns of a row, or a fault. `schema` is completed with what the line
    contains."""
    total = path.stat().st_size
    for record in read_records(path, report=lambda done: report(activity, done, total)):
        if isinstance(record, LineFault):
            yield record
            continue
        try:
            row = _row(record, schema)
        except ValueError as error:
            yield LineFault(record.line, str(error))
        else:
            schema.num_rows += 1
            yield row


def _row(record: Record, schema: Schema) -> dict[str, object]:
    """Return the columns of a record; raise ValueError with the reason if it cannot be kept."""
    chat_format = chat_format_of(record.values)
    if not schema.num_rows and not schema.columns:
        schema.chat_format = chat_format
    if chat_format is not schema.chat_format:
        name = TABLE if chat_format is None else chat_format.name
        raise ValueError(
            f"it has the format {name}, but the lines before have {schema.format_name}; split the "
            "file"
        )
    plain = record.values
    row = dict[str, object]()
    if chat_format is not None:
        messages = messages_of(plain, chat_format=chat_format)
        used = (*chat_format.fields, *TOOL_FIELDS)
        plain = {name: value for name, value in plain.items() if name not in used}
        schema.has_weights |= any("weight" in message for message in messages)
        row[MESSAGES] = messages
        for message in messages:
            _check_text(message["content"])
    types = {name: _type_of(name, value) for name, value in plain.items()}
    for name, kind in types.items():
        schema.columns[name] = _merged(name, kind, before=schema.columns.get(name))
    return row | {name: None if types[name] is None else value for name, value in plain.items()}


def _type_of(name: str, value: object) -> type | None:
    """Return the type of a plain value, None for an empty one; raise ValueError if it cannot be
    kept."""
    if not name:
        raise ValueError("a column has no name; name it")
    if value is None or value == [] or value == {}:
        return None
    kind = type(value)
    if kind not in ARROW_TYPES:
        raise ValueError(
            f"the column {name!r} is a JSON {NAMES[kind]}, which is not kept; remove it or write a "
            "string"
        )
    if isinstance(value, str):
        _check_text(value)
    if kind is int and value not in INTEGERS:
        raise ValueError(f"the column {name!r} has an integer of more than 64 bits; write a string")
    return kind


def _check_text(text: Any) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"character {error.start + 1} of a text is half of a pair (\\ud800 to \\udfff)"
        ) from None


def _merged(name: str, kind: type | None, *, before: type | None) -> type | None:
    """Return the type of a column after a further line; raise ValueError if it has another type."""
    kinds = {kind, before} - {None}
    if len(kinds) < 2:
        return kind or before
    if kinds == {int, float}:
        return float
    raise ValueError(
        f"the column {name!r} has the type {NAMES[kind or str]}, but lines before have "
        f"{NAMES[before or str]}; use one type"
    )


def _num_characters(row: Mapping[str, object]) -> int:
    """Return the number of characters in the texts of a row."""
    size = sum(len(value) for value in row.values() if isinstance(value, str))
    messages = row.get(MESSAGES)
    if isinstance(messages, list):
        size += sum(len(message["content"]) for message in messages)
    return size
