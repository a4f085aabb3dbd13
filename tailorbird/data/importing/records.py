"""Read the records of JSON Lines and CSV files with their line numbers, in bounded memory."""

import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

MAX_LINE_BYTES = 64 << 20  # longest line of a file, and longest field of a CSV file
DELIMITERS = {".csv": ",", ".tsv": "\t"}
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
SUFFIXES = (*JSON_SUFFIXES, *DELIMITERS)


@dataclass(frozen=True)
class Record:
    """A record, and the line of the file on which it starts, from 1."""

    line: int
    values: dict[str, object]


@dataclass(frozen=True)
class LineFault:
    """A line that cannot be read or kept."""

    line: int
    reason: str


class _LineError(ValueError):
    """A fault after which the rest of the file cannot be read."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.fault = LineFault(line, reason)


def read_records(path: Path, *, report: Callable[[int], None]) -> Iterator[Record | LineFault]:
    """Yield the records of a file with one of SUFFIXES, and a LineFault for each line that cannot
    be read.

    A JSON file must have one object per line, a CSV file a header. Blank lines are skipped.
    `report` receives the number of bytes read. Raises OSError if the file cannot be read.
    """
    with path.open("rb") as file:
        lines = _decoded_lines(file, report=report)
        try:
            if path.suffix.lower() in DELIMITERS:
                yield from _csv_records(lines, delimiter=DELIMITERS[path.suffix.lower()])
            else:
                yield from _json_records(lines)
        except _LineError as error:
            yield error.fault


def _decoded_lines(file: BinaryIO, *, report: Callable[[int], None]) -> Iterator[str]:
    """Yield the lines with their line ends; raise _LineError for a line that is too long or not
    UTF-8."""
    size = 0
    lines = iter(partial(file.readline, MAX_LINE_BYTES + 1), b"")
    for number, content in enumerate(lines, start=1):
        size += len(content)
        if len(content) > MAX_LINE_BYTES:
            raise _LineError(
                number, f"it is longer than {MAX_LINE_BYTES >> 20} MiB; write one record per line"
            )
        try:
            text = content.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            byte = content[error.start]
            raise _LineError(
                number,
                f"byte {error.start + 1} (0x{byte:02x}) is not UTF-8; convert the file to UTF-8, "
                "with iconv",
            ) from None
        yield text
        report(size)


def _json_records(lines: Iterator[str]) -> Iterator[Record | LineFault]:
    is_first = True
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if is_first and line.lstrip().startswith("["):
            raise _LineError(
                number, "the file is a JSON array; write one object per line, with jq -c '.[]' FILE"
            )
        is_first = False
        try:
            values = json.loads(
                line, object_pairs_hook=_unique_names, parse_constant=_refuse_constant
            )
        except RecursionError:
            yield LineFault(number, "it is nested too deeply; give an object with few levels")
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                reason = f"{error.msg} at character {error.pos + 1}"
            else:
                reason = str(error)
            yield LineFault(number, f"it is not valid JSON ({reason}); give one object per line")
        else:
            if isinstance(values, dict):
                yield Record(number, values)
            else:
                yield LineFault(
                    number, f"it is a JSON {type(values).__name__}; give one object per line"
                )


def _unique_names(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {repeated!r} is repeated")
    return values


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not a JSON value")


def _csv_records(lines: Iterator[str], *, delimiter: str) -> Iterator[Record | LineFault]:
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    header: list[str] = []
    try:
        while True:
            first = rows.line_num + 1
            try:
                fields = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                raise _LineError(
                    first, f"it is not valid CSV ({error}); check its quotes"
                ) from None
            if not fields:
                continue
            if not header:
                header = fields
                _check_header(header, line=first, delimiter=delimiter)
            elif len(fields) == len(header):
                yield Record(
                    first, {name: value or None for name, value in zip(header, fields, strict=True)}
                )
            else:
                yield LineFault(
                    first, f"it has {len(fields)} fields, but the header has {len(header)}"
                )
    finally:
        csv.field_size_limit(limit)


def _check_header(header: list[str], *, line: int, delimiter: str) -> None:
    if len(header) < 2:
        raise _LineError(
            line, f"the header has one column; give at least two, separated by {delimiter!r}"
        )
    for name in header:
        if not name.strip():
            raise _LineError(line, "a column of the header has no name; name all columns")
        if header.count(name) > 1:
            raise _LineError(line, f"the header has the column {name!r} twice; rename one")
