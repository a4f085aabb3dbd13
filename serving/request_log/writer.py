"""Write log entries to Parquet files on S3, with a buffer in memory and in a write-ahead log."""

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

from serving.request_log.schema import FeedbackEntry, LogEntry, Row
from serving.request_log.write_ahead_log import open_write_ahead_log
from tailorbird.storage import write_bytes

FLUSH_S = 10.0
MAX_BYTES = 64 << 20
"""Maximum size of the rows in memory while storage is unavailable. Beyond it, the oldest rows are dropped and
counted."""
FILE_ROWS = 10_000
FILE_BYTES = 16 << 20  # maximum size of a file's rows in memory; writing a file copies them
ROW_BYTES = 1400  # memory of a row without its strings; tracemalloc: 1,310 with three scores, 340 without scores
CLOSE_S = 4.0  # time to write the remaining rows; Serve stops a replica a few seconds after its last response

_log = logging.getLogger("ray.serve")


EntryT = TypeVar("EntryT", bound=LogEntry | FeedbackEntry)


@dataclass
class _FileBuffer:
    """The rows of one file number, each with its approximate size in memory."""

    number: int
    rows: deque[tuple[int, Row]] = field(default_factory=deque)
    num_bytes: int = 0  # size of all rows, including those that are only on the disk
    on_disk: bool = False  # True if some rows are only in the write-ahead log


class BufferedParquetWriter(Generic[EntryT]):
    """A writer of rows to `<uri>/day=YYYY-MM-DD/<replica>-<number>.parquet`, by day in UTC.

    A file is written completely or not at all. Rows that cannot be written stay in memory, up to `MAX_BYTES`. `close`
    writes the remaining rows. With `wal_folder`, rows are also on the disk, and the next writer that uses the folder
    writes the rows of a killed replica. `to_row` converts an entry to a row with `columns`. Use the writer in one event
    loop.
    """

    def __init__(
        self, uri: str, *, columns: Mapping[str, str], to_row: Callable[[EntryT], Row], wal_folder: Path | None = None
    ) -> None:
        self._uri = uri.rstrip("/")
        self._columns = columns
        self._to_row = to_row
        uri_hash = hashlib.sha256(self._uri.encode()).hexdigest()[:16]
        self._wal = open_write_ahead_log(wal_folder / uri_hash) if wal_folder else None
        self._name = self._wal.name if self._wal else uuid.uuid4().hex[:12]
        self._open = _FileBuffer(0)
        self._sealed: deque[_FileBuffer] = deque()
        self._num_bytes = 0
        self._writing = asyncio.Lock()
        self._last_error = ""
        self._num_reported = 0
        self.num_dropped = 0

    def add(self, entries: Sequence[EntryT]) -> None:
        """Buffer entries without waiting for storage."""
        rows: list[Row] = []
        for row in map(self._to_row, entries):
            num_bytes = _size(row)
            buffered = self._open.num_bytes
            if len(self._open.rows) >= FILE_ROWS or (buffered and buffered + num_bytes > FILE_BYTES):
                self._add_to_wal(rows)
                rows = []
                self._seal()
            self._open.rows.append((num_bytes, row))
            self._open.num_bytes += num_bytes
            self._num_bytes += num_bytes
            rows.append(row)
        self._add_to_wal(rows)
        self._drop_excess()

    def _add_to_wal(self, rows: Sequence[Row]) -> None:
        if self._wal and rows:
            self._wal.add(self._open.number, rows)

    def _seal(self) -> None:
        self._sealed.append(self._open)
        self._open = _FileBuffer(self._open.number + 1)

    def _drop_excess(self) -> None:
        """Drop the oldest rows beyond `MAX_BYTES` from memory. Rows that are not in the write-ahead log are lost."""
        while self._num_bytes > MAX_BYTES:
            oldest = next((buffer for buffer in self._sealed if buffer.rows), self._open)
            if not oldest.rows:  # all rows are being written
                return
            if not oldest.on_disk and self._wal and self._wal.holds(oldest.number):
                oldest.on_disk = True
            self._num_bytes -= oldest.rows.popleft()[0]
            self.num_dropped += not oldest.on_disk

    async def keep_writing(self) -> None:
        """Write the buffered rows every few seconds until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            await self._write_abandoned()

    async def flush(self) -> None:
        """Write the buffered rows now. On failure, the rows stay in the buffer and the error is logged once."""
        async with self._writing:
            if self._open.rows or self._open.on_disk:
                self._seal()
            while self._sealed:
                buffer = self._sealed.popleft()
                try:
                    await asyncio.to_thread(self._write_buffer, buffer)
                except BaseException as error:  # unavailable storage must not stop the responses
                    self._sealed.appendleft(buffer)
                    self._drop_excess()
                    if not isinstance(error, Exception):
                        raise
                    self._report(error)
                    return
                if self._wal:
                    self._wal.delete(buffer.number)
                self._num_bytes -= sum(num_bytes for num_bytes, _ in buffer.rows)
                self._last_error = ""

    def _write_buffer(self, buffer: _FileBuffer) -> None:
        on_disk = self._wal.rows(buffer.number) if buffer.on_disk and self._wal else None
        self._write(self._name, buffer.number, on_disk or [row for _, row in buffer.rows])

    async def _write_abandoned(self) -> None:
        """Write the rows that ended replicas of this node did not store."""
        if self._wal is None:
            return
        wal = self._wal

        def write() -> None:
            for batch in wal.abandoned_batches():
                try:
                    self._write(batch.name, batch.number, batch.rows)
                    batch.delete()
                except Exception as error:  # storage is unavailable or a file is damaged; try the other batches
                    self._report(error)
                    continue
                message = "wrote %d rows to %s that an ended replica had not stored"
                _log.warning(message, len(batch.rows), self._uri)

        async with self._writing:
            await asyncio.to_thread(write)

    def _report(self, error: Exception) -> None:
        if str(error) != self._last_error:
            _log.error("rows of %s cannot be written and stay buffered: %s", self._uri, error)
        if self.num_dropped > self._num_reported:
            _log.error("%d rows of %s are lost", self.num_dropped - self._num_reported, self._uri)
        self._last_error, self._num_reported = str(error), self.num_dropped

    async def close(self) -> None:
        """Write the remaining rows. Rows that cannot be written stay in the write-ahead log, or are logged as lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        remaining = [buffer for buffer in (*self._sealed, self._open) if buffer.rows or buffer.on_disk]
        on_wal = [buffer for buffer in remaining if self._wal and self._wal.holds(buffer.number)]
        num_lost = self.num_dropped - self._num_reported
        num_lost += sum(len(buffer.rows) for buffer in remaining if buffer not in on_wal)
        if self._wal:
            self._wal.close()
        if on_wal:
            _log.error("rows of %s stay on this node's disk, and the next replica writes them", self._uri)
        if num_lost:
            _log.error("%d rows of %s are lost", num_lost, self._uri)

    def _write(self, name: str, number: int, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        by_day: dict[str, list[Row]] = {}
        for row in rows:
            by_day.setdefault(row["at"].date().isoformat(), []).append(row)
        for day, day_rows in by_day.items():
            sink = pa.BufferOutputStream()
            pq.write_table(pa.Table.from_pylist(day_rows, schema=arrow_schema(self._columns)), sink)
            # A retry uses the same name, so that it overwrites a file that was written before a failure.
            write_bytes(f"{self._uri}/day={day}/{name}-{number:06d}.parquet", sink.getvalue().to_pybytes())


def _size(row: Row) -> int:
    """Return the approximate size of a row in memory. Strings that rows share count for each row."""
    return ROW_BYTES + sum(getsizeof(value) for value in row.values() if isinstance(value, str))


def utc_now() -> datetime:
    """Return the current time in UTC, with its time zone."""
    return datetime.now(UTC)


def arrow_schema(columns: Mapping[str, str]) -> Any:
    """Return the Arrow schema of `ANSWERS` or `FEEDBACK`."""
    import pyarrow as pa

    scored = pa.list_(pa.struct({"label": pa.string(), "score": pa.float32()}))
    types = {"string": pa.string(), "time": pa.timestamp("us", tz="UTC"), "int": pa.int32(), "float": pa.float32()}
    return pa.schema({name: (types | {"scored": scored})[kind] for name, kind in columns.items()})
