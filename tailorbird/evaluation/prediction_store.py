"""Store predictions as Parquet."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from tailorbird import storage
from tailorbird.data.arrow_safety import extension_columns
from tailorbird.evaluation.predictions import Predictions


def save_predictions(uri: str, table: Predictions) -> None:
    """Write predictions as one Parquet object."""
    buffer = io.BytesIO()
    pq.write_table(table.to_table(), buffer)
    storage.write_bytes(uri, buffer.getvalue())


def load_predictions(uri: str) -> Predictions:
    """Read predictions that `save_predictions` wrote; raise ValueError for any other file."""
    # Unlike `read_table`, `ParquetFile` does not import pandas, which takes a second.
    table = pq.ParquetFile(pa.BufferReader(storage.read_bytes(uri))).read()
    foreign = extension_columns(table.schema)
    if foreign:
        columns = ", ".join(foreign)
        raise ValueError(
            f"{uri} is not a table of predictions: columns with an extension type are unsafe: "
            f"{columns}"
        )
    return Predictions.from_table(table)
