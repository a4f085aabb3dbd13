"""Write log entries to Parquet files on S3, buffered and journaled."""

import asyncio
import hashlib
import logging
import uuid
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from sys import getsizeof
from typing import Any, Generic, TypeVar

from serving.request_log.schema import FeedbackEntry, LogEntry
from serving.request_log.write_ahead_log import open_write_ahead_log
from tailorbird.storage import write_bytes

FLUSH_S = 10.0
MAX_BYTES = 64 << 20
"""What waits for a store that is away; of more, the oldest is given up and counted."""
FILE_ROWS = 10_000
FILE_BYTES = 16 << 20
"""Of the rows of a file, which lie in memory together once more when it is written."""
ROW_BYTES = 1400
"""What a row holds in memory beside its texts, by tracemalloc: 1,310 with three scores, 340 without."""
CLOSE_S = 4.0
"""What is left must be written in: Serve ends a replica a few seconds after its last answer."""

_log = logging.getLogger("ray.serve")


EntryT = TypeVar("EntryT", bound=LogEntry | FeedbackEntry)


@dataclass
class _FileBuffer:
    """Rows of one file a day, each with about the bytes that it holds in memory."""

    number: int
    rows: deque[tuple[int, dict[str, Any]]] = field(default_factory=deque)
    num_bytes: int = 0
    """Of all its rows, those on disk too."""
    on_disk: bool = False
    """Whether some of them are in the journal alone."""


class BufferedParquetWriter(Generic[EntryT]):
    """Rows for `<uri>/day=YYYY-MM-DD/<replica>-<number>.parquet`, by day, UTC.

    What a file holds is written whole or not at all; what could not be written waits, up to `MAX_BYTES`, and `close`
    writes what is left. With a folder for a journal it waits on disk too, and whoever opens a spool there next writes
    what a killed replica left. `to_row` makes a row of `schema`. Lives in one event loop.
    """

    def __init__(
        self,
        uri: str,
        *,
        schema: Mapping[str, str],
        to_row: Callable[[EntryT], dict[str, Any]],
        wal_folder: Path | None = None,
    ) -> None:
        self._uri = uri.rstrip("/")
        self._schema = schema
        self._to_row = to_row
        uri_hash = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        self._wal = open_write_ahead_log(wal_folder / uri_hash) if wal_folder else None
        self._name = self._wal.name if self._wal else uuid.uuid4().hex[:12]
        self._open = _FileBuffer(0)
        self._sealed: deque[_FileBuffer] = deque()
        self._num_bytes = 0
        self._writing = asyncio.Lock()
        self._fault = ""
        self._num_told = 0
        self.num_dropped = 0

    def add(self, entries: Sequence[EntryT]) -> None:
        """Takes rows, without waiting for the store."""
        taken: list[dict[str, Any]] = []
        for row in map(self._to_row, entries):
            num_bytes = _size(row)
            begun = self._open.num_bytes
            if len(self._open.rows) >= FILE_ROWS or (begun and begun + num_bytes > FILE_BYTES):
                self._note(taken)
                taken = []
                self._seal()
            self._open.rows.append((num_bytes, row))
            self._open.num_bytes += num_bytes
            self._num_bytes += num_bytes
            taken.append(row)
        self._note(taken)
        self._give_up()

    def _note(self, rows: Sequence[dict[str, Any]]) -> None:
        """Puts rows of the open batch on disk."""
        if self._wal and rows:
            self._wal.add(self._open.number, rows)

    def _seal(self) -> None:
        self._sealed.append(self._open)
        self._open = _FileBuffer(self._open.number + 1)

    def _give_up(self) -> None:
        """Of what is too much, the oldest: to the journal, or where that does not hold it, for good."""
        while self._num_bytes > MAX_BYTES:
            oldest = next((batch for batch in self._sealed if batch.rows), self._open)
            if not oldest.rows:  # all of it is being written now
                return
            if not oldest.on_disk and self._wal and self._wal.holds(oldest.number):
                oldest.on_disk = True
            self._num_bytes -= oldest.rows.popleft()[0]
            self.num_dropped += not oldest.on_disk

    async def keep_writing(self) -> None:
        """Writes what waits every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            await self._adopt()

    async def flush(self) -> None:
        """Writes what waits now; where that fails it waits on, and the replica's log says so once."""
        async with self._writing:
            if self._open.rows or self._open.on_disk:
                self._seal()
            while self._sealed:
                batch = self._sealed.popleft()
                try:
                    await asyncio.to_thread(self._write_batch, batch)
                except BaseException as error:  # whatever the store says, requests are answered on
                    self._sealed.appendleft(batch)
                    self._give_up()
                    if not isinstance(error, Exception):
                        raise
                    self._tell(error)
                    return
                if self._wal:
                    self._wal.written(batch.number)
                self._num_bytes -= sum(num_bytes for num_bytes, _ in batch.rows)
                self._fault = ""

    def _write_batch(self, batch: _FileBuffer) -> None:
        on_disk = self._wal.rows(batch.number) if batch.on_disk and self._wal else None
        self._write(self._name, batch.number, on_disk or [row for _, row in batch.rows])

    async def _adopt(self) -> None:
        """Writes what replicas of this node left that ended before the store had it."""
        if self._wal is None:
            return
        wal = self._wal

        def write() -> None:
            for left in wal.abandoned_batches():
                try:
                    self._write(left.name, left.number, left.rows)
                    left.forget()
                except Exception as error:  # of the store, or of one damaged file: the others come too
                    self._tell(error)
                    continue
                _log.warning("%d rows of %s were left by a replica that ended, and are kept", len(left.rows), self._uri)

        async with self._writing:
            await asyncio.to_thread(write)

    def _tell(self, error: Exception) -> None:
        if str(error) != self._fault:
            _log.error("%s waits, it cannot be written: %s", self._uri, error)
        if self.num_dropped > self._num_told:
            _log.error("%d rows of %s are lost", self.num_dropped - self._num_told, self._uri)
        self._fault, self._num_told = str(error), self.num_dropped

    async def close(self) -> None:
        """Writes what is left; what cannot be written waits in the journal, or is counted in the replica's log."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        left = [batch for batch in (*self._sealed, self._open) if batch.rows or batch.on_disk]
        kept = [batch for batch in left if self._wal and self._wal.holds(batch.number)]
        lost = self.num_dropped - self._num_told + sum(len(batch.rows) for batch in left if batch not in kept)
        if self._wal:
            self._wal.close()
        if kept:
            _log.error("rows of %s wait on this node's disk for the next replica", self._uri)
        if lost:
            _log.error("%d rows of %s are lost", lost, self._uri)

    def _write(self, name: str, number: int, rows: Sequence[dict[str, Any]]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        by_day: dict[str, list[dict[str, Any]]] = {}
        for row in rows:
            by_day.setdefault(row["at"].date().isoformat(), []).append(row)
        for day, of_day in by_day.items():
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(of_day, schema=arrow_schema(self._schema)), sink)
            # One number a day: a part that was written before a failure is written over, not twice.
            write_bytes(f"{self._uri}/day={day}/{name}-{number:06d}.parquet", sink.getvalue().to_pybytes())


def _size(row: Mapping[str, Any]) -> int:
    """About what a row holds in memory: as if it shared its texts with no other, for so it is written."""
    return ROW_BYTES + sum(getsizeof(value) for value in row.values() if isinstance(value, str))


def utc_now() -> datetime:
    """The time, with its zone."""
    return datetime.now(UTC)


def arrow_schema(columns: Mapping[str, str]) -> Any:
    import pyarrow as pa

    scored = pa.list_(pa.struct({"label": pa.string(), "score": pa.float32()}))
    types = {"string": pa.string(), "time": pa.timestamp("us", tz="UTC"), "int": pa.int32(), "float": pa.float32()}
    return pa.schema({name: (types | {"scored": scored})[kind] for name, kind in columns.items()})
