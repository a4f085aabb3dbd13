"""After encoding, for training rows that memory does not hold: tokens in Arrow files on S3, read in random chunks."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import label_indices
from tailorbird.data.tokenized import Encoded, offsets_of
from tailorbird.storage import upload_file
from tailorbird.storage.s3 import StorageError, explained, filesystem

CHUNK_ROWS = 256
"""Rows that are read together: few, so that a window of them comes from many places in the data."""
NUM_READS = 8
_COLUMNS = {
    "row_id": pa.string(),
    "ids": pa.list_(pa.int32()),
    "said": pa.list_(pa.bool_()),
    "label": pa.string(),
}


@dataclass(frozen=True)
class Shards:
    """Training rows as tokens in `uri`/<number>.arrow, in chunks of `CHUNK_ROWS` rows; a file's last may be smaller."""

    uri: str
    sizes: tuple[int, ...]
    """Rows of each file, in the order of their numbers."""
    classes: tuple[str, ...]
    """Of a classification; a chat task has none."""
    window_rows: int = 1 << 14
    """Rows that a worker trains on at random before it goes on to others."""

    def __len__(self) -> int:
        return sum(self.sizes)

    def chunks(self) -> NDArray[np.int64]:
        """int64 [number of chunks, 3]: file, place in it, and rows of each chunk."""
        parts = []
        for file, size in enumerate(self.sizes):
            places = np.arange(-(-size // CHUNK_ROWS))
            parts.append(
                np.stack([np.full_like(places, file), places, np.minimum(CHUNK_ROWS, size - places * CHUNK_ROWS)])
            )
        return np.concatenate(parts, axis=1).T

    def read(self, chunks: NDArray[np.int64]) -> Encoded:
        """The rows of some of `chunks()`, chunk after chunk in the given order."""
        order = np.argsort(chunks[:, 0], kind="stable")
        files, starts = np.unique(chunks[order, 0], return_index=True)
        places: list[pa.RecordBatch] = [None] * len(chunks)
        with ThreadPoolExecutor(NUM_READS) as pool:
            groups = np.split(order, starts[1:])
            read = pool.map(lambda file, group: self._batches(file, chunks[group, 1]), files, groups)
            for group, batches in zip(groups, read, strict=True):
                for place, batch in zip(group, batches, strict=True):
                    places[place] = batch
        table = pa.Table.from_batches(places)
        has = {name: table.column(name).null_count == 0 for name in ("said", "label")}
        return Encoded(
            row_ids=tuple(table.column("row_id").to_pylist()),
            ids=_flat(table.column("ids")),
            offsets=offsets_of(pc.list_value_length(table.column("ids")).to_numpy()),
            said=_flat(table.column("said")) if has["said"] else None,
            labels=label_indices(table.column("label").to_pylist(), classes=self.classes) if has["label"] else None,
        )

    def _batches(self, file: int, places: NDArray[np.int64]) -> list[pa.RecordBatch]:
        uri = file_uri(self.uri, int(file))
        store, path = filesystem(uri, patient=True)
        try:
            with explained(uri), store.open_input_file(path) as source, pa.ipc.open_file(source) as reader:
                if reader.schema != pa.schema(_COLUMNS):  # a type of somebody else's could run code
                    raise pa.ArrowInvalid("its columns are not those of shards")
                return [reader.get_batch(int(place)) for place in places]
        except pa.ArrowInvalid as error:
            raise StorageError(
                f"{uri} is not whole ({error}); delete {self.uri}, and run again: it is made anew"
            ) from None


def _flat(column: pa.ChunkedArray) -> NDArray[Any]:
    """The values of a column of lists, end to end."""
    flat: NDArray[Any] = pc.list_flatten(column).to_numpy()
    return flat


def file_uri(uri: str, number: int) -> str:
    """Where the file of a number lies."""
    return f"{uri}/{number:06d}.arrow"


class ShardWriter:
    """Writes one file of shards, chunk by chunk, on this machine's disk; where the block ends without an error, it is
    uploaded whole."""

    def __init__(self, uri: str, number: int) -> None:
        self._uri = file_uri(uri, number)
        self._waiting: list[dict[str, Any]] = []
        self._made = ExitStack()
        self.num_rows = 0

    def __enter__(self) -> Self:
        folder = self._made.enter_context(TemporaryDirectory(prefix="tailorbird-"))
        self._path = Path(folder) / "shard.arrow"
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        self._file = pa.ipc.new_file(self._path, pa.schema(_COLUMNS), options=options)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._made:
            if kind is None:
                self._flush()
            self._file.close()
            if kind is None:
                upload_file(self._path, self._uri, patient=True)

    def add(self, rows: Rows, *, tokens: list[list[int]], said: list[NDArray[np.bool_]] | None) -> None:
        """Appends rows with their tokens; of a chat task, with what was said."""
        nothing = [None] * len(rows)
        labels = nothing if said is not None else rows.labels
        columns = (rows.row_ids, tokens, said or nothing, labels)
        self._waiting += [dict(zip(_COLUMNS, row, strict=True)) for row in zip(*columns, strict=True)]
        self.num_rows += len(rows)
        while len(self._waiting) >= CHUNK_ROWS:
            self._flush()

    def _flush(self) -> None:
        chunk, self._waiting = self._waiting[:CHUNK_ROWS], self._waiting[CHUNK_ROWS:]
        if chunk:
            self._file.write_batch(pa.RecordBatch.from_pylist(chunk, schema=pa.schema(_COLUMNS)))


def window_chunks(num_chunks: int, *, rows: int, seed: int, epoch: int) -> Iterator[NDArray[np.int64]]:
    """Numbers of the chunks of each window of about `rows` rows of an epoch: each chunk once, in random order."""
    order = np.random.default_rng((seed, epoch, 0, 1)).permutation(num_chunks)
    size = -(-rows // CHUNK_ROWS)
    return (order[start : start + size] for start in range(0, num_chunks, size))
