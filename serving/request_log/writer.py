"""Write log entries to Parquet files on S3, with a buffer in memory and in a write-ahead log."""

import asyncio
import hashlib
import logging
import uuid
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from sys import getsizeof
from typing import Any, Generic, NamedTuple, TypeVar

from serving.limits import Budget, Client
from serving.request_log.schema import FeedbackEntry, LogEntry, Row
from serving.request_log.write_ahead_log import encode_row, open_write_ahead_log
from tailorbird.storage import write_bytes

FLUSH_S = 10.0
MAX_BYTES = 64 << 20  # maximum size of the rows in memory while storage is unavailable
MAX_DISK_BYTES = 1 << 30  # maximum size of one replica's rows on the disk, which other processes of the node also need
FILE_ROWS = 10_000
FILE_BYTES = 16 << 20  # maximum size of a file's rows in memory; writing a file copies them
ROW_BYTES = 1400  # memory of a row without its strings; tracemalloc: 1,310 with three scores, 340 without scores
CLOSE_S = 4.0  # time to write the remaining rows; Serve stops a replica a few seconds after its last response

_log = logging.getLogger("ray.serve")


EntryT = TypeVar("EntryT", bound=LogEntry | FeedbackEntry)


class _BufferedRow(NamedTuple):
    row: Row
    line: bytes  # for the write-ahead log; empty without one
    num_bytes: int  # approximate size in memory or on the disk, whichever is larger


@dataclass
class _FileBuffer:
    """The rows of one file number."""

    number: int
    on_disk: bool
    """True if all rows are in the write-ahead log, and those in memory only save reading them."""
    rows: deque[tuple[int, Row]] = field(default_factory=deque)  # in memory, each with its size
    evicted: bool = False  # True if some rows are not in memory
    num_bytes: int = 0  # size of all rows
    held: Counter[Client] = field(default_factory=Counter)  # size of all rows by caller

    @property
    def is_empty(self) -> bool:
        return not self.rows and not self.evicted

    def is_full(self, num_bytes: int) -> bool:
        """Return True if a row of this size belongs into the next file."""
        return len(self.rows) >= FILE_ROWS or bool(self.num_bytes and self.num_bytes + num_bytes > FILE_BYTES)

    def add(self, added: _BufferedRow) -> None:
        self.rows.append((added.num_bytes, added.row))
        self.num_bytes += added.num_bytes
        self.held[added.row["caller"]] += added.num_bytes

    def remove_last(self) -> int:
        """Remove the last row and return its size."""
        num_bytes, row = self.rows.pop()
        self.num_bytes -= num_bytes
        self.held[row["caller"]] -= num_bytes
        return num_bytes


class BufferedParquetWriter(Generic[EntryT]):
    """A writer of rows to `<uri>/day=YYYY-MM-DD/<replica>-<number>.parquet`, by day in UTC.

    A file is written completely or not at all. Rows that cannot be written stay buffered: with `wal_folder` on the
    disk, up to `MAX_DISK_BYTES`, and the next writer that uses the folder writes the rows of a killed replica; without
    it, or if the disk is full, in memory, up to `MAX_BYTES`. Each API key has a bound too (see `Budget`), so a key
    that fills the buffer loses its own rows only. `close` writes the remaining rows. `to_row` converts an entry to a
    row with `columns`. Use the writer in one event loop.
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
        self._disk = Budget(MAX_DISK_BYTES)
        self._memory = Budget(MAX_BYTES)
        self._open = _FileBuffer(0, on_disk=self._wal is not None)
        self._sealed: deque[_FileBuffer] = deque()
        self._num_bytes = 0
        self._writing = asyncio.Lock()
        self._last_error = ""
        self._unreported = Counter[Client]()  # lost rows
        self.num_dropped = 0

    def add(self, entries: Sequence[EntryT]) -> None:
        """Buffer entries without waiting for storage. Rows beyond the bounds are lost, and counted."""
        added: list[_BufferedRow] = []
        for row in map(self._to_row, entries):
            line = encode_row(row) if self._wal else b""
            buffered = _BufferedRow(row, line, max(_size(row), len(line)))
            if self._open.is_full(buffered.num_bytes):
                self._keep_on_disk(added)
                added = []
                self._seal()
            if self._buffer(buffered):
                added.append(buffered)
        self._keep_on_disk(added)
        self._evict()

    def _buffer(self, buffered: _BufferedRow) -> bool:
        """Add a row to the open buffer; count it as lost and return False if its caller has too many bytes."""
        caller = buffered.row["caller"]
        if not self._budget(self._open).take(caller, buffered.num_bytes):
            self._lose({caller: 1})
            return False
        self._open.add(buffered)
        self._num_bytes += buffered.num_bytes
        return True

    def _budget(self, buffer: _FileBuffer) -> Budget:
        return self._disk if buffer.on_disk else self._memory

    def _keep_on_disk(self, added: Sequence[_BufferedRow]) -> None:
        """Append the last rows of the open buffer to the write-ahead log, or move them to a buffer in memory only."""
        if self._wal is None or not added or not self._open.on_disk:
            return
        if self._wal.append(self._open.number, b"".join(buffered.line for buffered in added)):
            return
        for buffered in reversed(added):
            self._num_bytes -= self._open.remove_last()
            self._disk.release(buffered.row["caller"], buffered.num_bytes)
        if not self._open.is_empty:
            self._seal()
        self._open = _FileBuffer(self._open.number, on_disk=False)
        for buffered in added:
            self._buffer(buffered)

    def _seal(self) -> None:
        self._sealed.append(self._open)
        self._open = _FileBuffer(self._open.number + 1, on_disk=self._wal is not None)

    def _evict(self) -> None:
        """Remove the oldest rows beyond `MAX_BYTES` from memory that are also on the disk."""
        while self._num_bytes > MAX_BYTES:
            buffers = (*self._sealed, self._open)
            oldest = next((buffer for buffer in buffers if buffer.on_disk and buffer.rows), None)
            if oldest is None:  # they are being written
                return
            self._num_bytes -= oldest.rows.popleft()[0]
            oldest.evicted = True

    def _lose(self, rows: Mapping[Client, int]) -> None:
        self._unreported.update(rows)
        self.num_dropped += sum(rows.values())

    async def keep_writing(self) -> None:
        """Write the buffered rows every few seconds until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            self._report_lost()
            await self._write_abandoned()

    async def flush(self) -> None:
        """Write the buffered rows now. On failure, the rows stay in the buffer and the error is logged once."""
        async with self._writing:
            if not self._open.is_empty:
                self._seal()
            while self._sealed:
                buffer = self._sealed.popleft()
                try:
                    await asyncio.to_thread(self._write_buffer, buffer)
                except BaseException as error:  # unavailable storage must not stop the responses
                    self._sealed.appendleft(buffer)
                    self._evict()
                    if not isinstance(error, Exception):
                        raise
                    self._report(error)
                    return
                if self._wal:
                    self._wal.delete(buffer.number)
                self._num_bytes -= sum(num_bytes for num_bytes, _ in buffer.rows)
                for caller, num_bytes in buffer.held.items():
                    self._budget(buffer).release(caller, num_bytes)
                self._last_error = ""

    def _write_buffer(self, buffer: _FileBuffer) -> None:
        on_disk = self._wal.rows(buffer.number) if buffer.evicted and self._wal else None
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
        self._last_error = str(error)

    def _report_lost(self) -> None:
        """Log the rows that were lost since the last call, with the keys that lost most."""
        if not self._unreported:
            return
        by_caller = ", ".join(f"{caller or 'no key'}: {num:,}" for caller, num in self._unreported.most_common(5))
        total = self._unreported.total()
        _log.error(
            "%d rows of %s are lost, because they are beyond the bound of their key: %s", total, self._uri, by_caller
        )
        self._unreported.clear()

    async def close(self) -> None:
        """Write the remaining rows. Rows that cannot be written stay in the write-ahead log, or are logged as lost."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        self._report_lost()
        remaining = [buffer for buffer in (*self._sealed, self._open) if not buffer.is_empty]
        if self._wal:
            self._wal.close()
        if any(buffer.on_disk for buffer in remaining):
            _log.error("rows of %s stay on this node's disk, and the next replica writes them", self._uri)
        if num_lost := sum(len(buffer.rows) for buffer in remaining if not buffer.on_disk):
            _log.error("%d rows of %s are lost, because they could not be written", num_lost, self._uri)

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
    types["bool"] = pa.bool_()
    return pa.schema({name: (types | {"scored": scored})[kind] for name, kind in columns.items()})
