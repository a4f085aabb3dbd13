"""Tokenized training rows in Arrow files on S3, read in random chunks."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tailorbird.data.tokenize import label_indices
from tailorbird.data.tokenized import TokenizedRows, TokenLists, offsets_of
from tailorbird.storage import upload_file
from tailorbird.storage.s3 import PERSISTENT, StorageError, filesystem, storage_errors

CHUNK_ROWS = 256  # rows that are read together; few, so that a window samples the whole data
NUM_READS = 8
_COLUMNS = {
    "row_id": pa.string(),
    "ids": pa.list_(pa.int32()),
    "assistant_mask": pa.list_(pa.bool_()),
    "label": pa.string(),
}


@dataclass(frozen=True)
class Shards:
    """Tokenized training rows in `<uri>/<number>.arrow`, in chunks of `CHUNK_ROWS` rows (the last
    can be smaller)."""

    uri: str
    sizes: tuple[int, ...]  # rows of each file, by file number
    classes: tuple[str, ...]  # empty for chat tasks
    window_rows: int = 1 << 14  # rows that a worker shuffles together

    def __len__(self) -> int:
        return sum(self.sizes)

    def chunks(self) -> NDArray[np.int64]:
        """Return the file number, index in the file and number of rows of each chunk, int64 [number
        of chunks, 3]."""
        parts = []
        for file, size in enumerate(self.sizes):
            indices = np.arange(-(-size // CHUNK_ROWS))
            num_rows = np.minimum(CHUNK_ROWS, size - indices * CHUNK_ROWS)
            parts.append(np.stack([np.full_like(indices, file), indices, num_rows]))
        return np.concatenate(parts, axis=1).T

    def read(self, chunks: NDArray[np.int64]) -> TokenizedRows:
        """Read the rows of a subset of `chunks()`, in its order."""
        files, starts = np.unique(chunks[:, 0], return_index=True)
        with ThreadPoolExecutor(NUM_READS) as pool:
            read = pool.map(self._read_file, files, np.split(chunks[:, 1], starts[1:]))
            table = pa.Table.from_batches(chain.from_iterable(read))
        ids = table.column("ids")
        mask = labels = None
        if self.classes:
            labels = label_indices(table.column("label").to_pylist(), classes=self.classes)
        else:
            mask = pc.list_flatten(table.column("assistant_mask")).to_numpy()
        return TokenizedRows(
            row_ids=tuple(table.column("row_id").to_pylist()),
            ids=pc.list_flatten(ids).to_numpy(),
            offsets=offsets_of(pc.list_value_length(ids).to_numpy()),
            assistant_mask=mask,
            labels=labels,
        )

    def _read_file(self, file: int, indices: NDArray[np.int64]) -> list[pa.RecordBatch]:
        uri = file_uri(self.uri, int(file))
        store, path = filesystem(uri, retry_policy=PERSISTENT)
        try:
            with (
                storage_errors(uri),
                store.open_input_file(path) as source,
                pa.ipc.open_file(source) as reader,
            ):
                if reader.schema != pa.schema(_COLUMNS):  # another extension type could run code
                    raise pa.ArrowInvalid("its columns are not those of a shard")
                return [reader.get_batch(int(index)) for index in indices]
        except pa.ArrowInvalid as error:
            raise StorageError(
                f"{uri} is damaged ({error}); delete {self.uri} and run again"
            ) from None


def file_uri(uri: str, number: int) -> str:
    """Return the URI of a file of shards."""
    return f"{uri}/{number:06d}.arrow"


def fingerprints_uri(uri: str, number: int) -> str:
    """Return the URI of the fingerprints of the rows in a file of shards."""
    return f"{uri}/{number:06d}.fingerprints.parquet"


@contextmanager
def write_shard_file(uri: str, number: int) -> Iterator["ShardWriter"]:
    """Yield a writer of a file of shards on the local disk; upload the file if the block
    succeeds."""
    with TemporaryDirectory(prefix="tailorbird-") as folder:
        path = Path(folder) / "shard.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(path, pa.schema(_COLUMNS), options=options) as file:
            writer = ShardWriter(file)
            yield writer
            writer.flush()
        upload_file(path, file_uri(uri, number), retry_policy=PERSISTENT)


class ShardWriter:
    """Writer of tokenized rows to an Arrow file in chunks of `CHUNK_ROWS`."""

    def __init__(self, file: pa.ipc.RecordBatchFileWriter) -> None:
        self._file = file
        self._pending: list[tuple[Any, ...]] = []
        self.num_rows = 0

    def add(self, row_ids: Sequence[str], tokens: TokenLists) -> None:
        """Append tokenized rows."""
        nulls = [None] * len(row_ids)
        columns = (row_ids, tokens.ids, tokens.assistant_masks or nulls, tokens.labels or nulls)
        self._pending += zip(*columns, strict=True)
        self.num_rows += len(row_ids)
        while len(self._pending) >= CHUNK_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write up to `CHUNK_ROWS` pending rows as a chunk."""
        chunk = self._pending[:CHUNK_ROWS]
        self._pending = self._pending[CHUNK_ROWS:]
        if chunk:
            rows = [dict(zip(_COLUMNS, row, strict=True)) for row in chunk]
            self._file.write_batch(pa.RecordBatch.from_pylist(rows, schema=pa.schema(_COLUMNS)))


def window_chunks(
    num_chunks: int, *, rows: int, seed: int, epoch: int
) -> Iterator[NDArray[np.int64]]:
    """Iterate over the windows of an epoch: ascending numbers of random chunks with about `rows`
    rows, each once."""
    order = np.random.default_rng((seed, epoch, 0, 1)).permutation(num_chunks)
    size = -(-rows // CHUNK_ROWS)
    return (np.sort(order[start : start + size]) for start in range(0, num_chunks, size))
