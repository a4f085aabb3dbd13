"""Write log entries to Parquet files on S3. Until then they are in a write-ahead log on the node's
disk."""

import asyncio
import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from serving.limits import Budget, Client
from serving.request_log.schema import FeedbackEntry, LogEntry, Row, arrow_schema
from serving.request_log.write_ahead_log import WriteAheadLog, encode_row, read_batch
from tailorbird.storage import write_bytes

FLUSH_S = 10.0
# maximum size of one replica's rows on the disk, which other processes of the node also need
MAX_BYTES = 1 << 30
# size from which rows are written to the next file; a file is read into memory
FILE_BYTES = 16 << 20
# time to write the remaining rows; Serve stops a replica a few seconds after its last response
CLOSE_S = 4.0

_log = logging.getLogger("ray.serve")


EntryT = TypeVar("EntryT", bound=LogEntry | FeedbackEntry)


class LogWriter(Generic[EntryT]):
    """A writer of rows to `<uri>/day=YYYY-MM-DD/<replica>-<number>.parquet`, by day in UTC.

    A file is written completely or not at all. Rows that cannot be written stay in the write-ahead
    log in `wal_folder`, up to `MAX_BYTES`, and the next writer that uses the folder writes the rows
    of a killed replica. Each API key has a bound too (see `Budget`), so a key that fills the disk
    loses its own rows only. `close` writes the remaining rows. `to_row` converts an entry to a row
    with its columns. Use the writer in one event loop.
    """

    def __init__(
        self,
        uri: str,
        *,
        entry_type: type[EntryT],
        to_row: Callable[[EntryT], Row],
        wal_folder: Path,
    ) -> None:
        self._uri = uri.rstrip("/")
        self._schema = arrow_schema(entry_type)
        self._to_row = to_row
        self._wal = WriteAheadLog(wal_folder / hashlib.sha256(self._uri.encode()).hexdigest()[:16])
        self._budget = Budget(MAX_BYTES)
        self._open = Counter[Client]()  # bytes of the open batch by caller
        # batches to write, with their bytes by caller
        self._sealed = deque[tuple[Path, Counter[Client]]]()
        self._writing = asyncio.Lock()
        self._last_error = ""
        self._unreported = Counter[Client]()  # lost rows
        self.num_dropped = 0

    def add(self, entries: Sequence[EntryT]) -> None:
        """Append entries to the write-ahead log. Rows beyond the bounds or the disk are lost, and
        counted."""
        for row in map(self._to_row, entries):
            self._append(row["caller"], encode_row(row))
        if self._open.total() >= FILE_BYTES:
            self._seal()

    def _append(self, caller: Client, line: bytes) -> None:
        if not self._budget.take(caller, len(line)):
            self._lose(caller)
            return
        try:
            self._wal.append(line)
        except OSError as error:
            self._report(error)
            self._budget.release(caller, len(line))
            self._lose(caller)
            return
        self._open[caller] += len(line)

    def _seal(self) -> None:
        if self._open:
            self._sealed.append((self._wal.seal(), self._open))
            self._open = Counter()

    def _lose(self, caller: Client) -> None:
        self._unreported[caller] += 1
        self.num_dropped += 1

    async def keep_writing(self) -> None:
        """Write the rows every few seconds until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_S)
            await self.flush()
            self._report_lost()
            await self._write_abandoned()

    async def flush(self) -> None:
        """Write the rows now. On failure, they stay in the write-ahead log and the error is logged
        once."""
        async with self._writing:
            self._seal()
            while self._sealed:
                path, held = self._sealed[0]
                try:
                    await asyncio.to_thread(self._write, path)
                    path.unlink()
                except Exception as error:  # unavailable storage must not stop the responses
                    self._report(error)
                    return
                self._sealed.popleft()
                for caller, num_bytes in held.items():
                    self._budget.release(caller, num_bytes)
                self._last_error = ""

    async def _write_abandoned(self) -> None:
        """Write the rows that ended replicas of this node did not store."""

        def write() -> None:
            for path in self._wal.abandoned_batches():
                try:
                    num_rows = self._write(path)
                    path.unlink()
                except Exception as error:
                    # Storage is unavailable or a file is damaged: try the other batches.
                    self._report(error)
                    continue
                _log.warning(
                    "wrote %d rows to %s that an ended replica had not stored", num_rows, self._uri
                )

        async with self._writing:
            await asyncio.to_thread(write)

    def _report(self, error: Exception) -> None:
        if str(error) != self._last_error:
            _log.error("rows of %s cannot be written: %s", self._uri, error)
        self._last_error = str(error)

    def _report_lost(self) -> None:
        """Log the rows that were lost since the last call, with the keys that lost most."""
        if not self._unreported:
            return
        by_caller = ", ".join(
            f"{caller or 'no key'}: {num:,}" for caller, num in self._unreported.most_common(5)
        )
        reason = "they are beyond the bound of their key, or the disk is full"
        _log.error(
            "%d rows of %s are lost, because %s: %s",
            self._unreported.total(),
            self._uri,
            reason,
            by_caller,
        )
        self._unreported.clear()

    async def close(self) -> None:
        """Write the remaining rows. Rows that cannot be written stay in the write-ahead log."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await self.flush()
        self._report_lost()
        self._wal.close()
        if self._sealed or self._open:
            _log.error(
                "rows of %s stay on this node's disk, and the next replica writes them", self._uri
            )

    def _write(self, path: Path) -> int:
        """Write the rows of a batch by day, and return their number.

        The files have the name of the batch, so a retry overwrites what was written before a
        failure.
        """
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        table = read_batch(path, schema=self._schema)
        days = table["at"].cast(pa.date32())
        for day in days.unique().to_pylist():
            sink = pa.BufferOutputStream()
            pq.write_table(table.filter(pc.equal(days, day)), sink)
            write_bytes(
                f"{self._uri}/day={day.isoformat()}/{path.stem}.parquet",
                sink.getvalue().to_pybytes(),
            )
        return len(table)
