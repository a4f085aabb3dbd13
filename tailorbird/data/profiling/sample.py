"""Read a bounded sample of Parquet files, with statistics of its columns."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from tailorbird.data.parquet import Kind, kind_of, open_parquet, parquet_files, plain_type

SAMPLE_ROWS = 50_000
SAMPLE_BYTES = 256 << 20
"""Numbers of rows, and of uncompressed bytes, after which no further row group is read."""
# maximum number of rows of a sample whose tokens are counted
SPREAD_ROWS = 2000

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column:
    """A column of a sample. Its values are strings or conversations."""

    name: str
    kind: Kind
    values: tuple[Any, ...]  # None for null

    @cached_property
    def counts(self) -> Counter[str]:
        return Counter(value for value in self.values if value is not None)

    @property
    def num_null(self) -> int:
        return sum(value is None for value in self.values)

    @cached_property
    def mean_words(self) -> float:
        """Mean number of words of a value."""
        texts = [value for value in self.values if value is not None]
        return sum(len(text.split()) for text in texts) / max(1, len(texts))


@dataclass(frozen=True)
class Sample:
    """The first rows of a file or folder."""

    uri: str
    num_rows: int  # in the file or folder
    num_sampled: int
    columns: tuple[Column, ...]  # columns that a recipe can use, in file order
    unusable: tuple[str, ...]  # names and types of the other columns

    @property
    def is_whole(self) -> bool:
        return self.num_sampled == self.num_rows

    def column(self, name: str) -> Column | None:
        return next((column for column in self.columns if column.name == name), None)


def read_sample(uri: str) -> Sample:
    """Read the first rows of a Parquet file, or of the files of a folder in the order of their
    paths.

    Reads all footers, and row groups up to SAMPLE_ROWS and SAMPLE_BYTES. Raises DataError if a file
    cannot be read.
    """
    parts: list[pa.Table] = []
    num_rows = 0
    num_sampled = 0
    num_bytes = 0
    unusable: tuple[str, ...] = ()
    for name in parquet_files(uri):
        with open_parquet(name, columns=(), in_parts=True) as file:
            num_rows += file.metadata.num_rows
            usable = [field.name for field in file.schema_arrow if kind_of(field.type) != "other"]
            unusable = unusable or tuple(
                f"{f.name} ({f.type})" for f in file.schema_arrow if f.name not in usable
            )
            for group in range(file.num_row_groups):
                if parts and (num_sampled >= SAMPLE_ROWS or num_bytes >= SAMPLE_BYTES):
                    break
                parts.append(file.read_row_group(group, columns=usable))
                num_sampled += parts[-1].num_rows
                num_bytes += file.metadata.row_group(group).total_byte_size
    table = pa.concat_tables(parts, promote_options="permissive") if parts else pa.table({})
    return Sample(
        uri,
        num_rows=num_rows,
        num_sampled=num_sampled,
        columns=tuple(_column(table, name) for name in table.column_names),
        unusable=unusable,
    )


def count_rows(uri: str) -> int:
    """Return the number of rows of a Parquet file or folder from its footers; raise DataError if
    one cannot be read."""
    total = 0
    for name in parquet_files(uri):
        with open_parquet(name, columns=(), in_parts=True) as file:
            total += file.metadata.num_rows
    return total


def _column(table: pa.Table, name: str) -> Column:
    column = table.column(name)
    kind = kind_of(column.type)
    if kind != "messages":
        column = column.cast(plain_type(column.type)).cast(pa.large_string())
    return Column(name, kind, tuple(column.to_pylist()))


def spread(rows: Sequence[Row]) -> list[Row]:
    """Return at most SPREAD_ROWS evenly spaced rows."""
    indices = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), SPREAD_ROWS)).astype(np.int64))
    return [rows[index] for index in indices]
