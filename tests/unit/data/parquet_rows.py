"""Small Parquet files, and the data section that reads them."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird.config.data import DataConfig


def put(path: Path, **columns: Any) -> str:
    """Write a table, and return its URI."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path.as_uri()


def config_of(uri: str, **fields: Any) -> DataConfig:
    return DataConfig(train=uri, **fields)
