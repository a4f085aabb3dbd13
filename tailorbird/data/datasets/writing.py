"""The tables of a data set as Parquet objects."""

import io
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage


def write_splits(tables: Mapping[str, pa.Table], *, prefix: str) -> dict[str, int]:
    """Write the table of each split to `<prefix>/<split>/part-0.parquet`, and return its number of
    rows."""
    for name, table in tables.items():
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(f"{prefix.rstrip('/')}/{name}/part-0.parquet", buffer.getvalue())
    return {name: table.num_rows for name, table in tables.items()}
