"""Write-ahead log on the node's disk, which keeps rows that are not yet on S3 if a replica is killed."""

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import NamedTuple

from serving.request_log.schema import Row
from tailorbird.storage import StorageError
from tailorbird.storage.node_cache import cache_folder, private_folder

_log = logging.getLogger("ray.serve")

_ENCODE = json.JSONEncoder(default=datetime.isoformat, check_circular=False, ensure_ascii=False).encode


def encode_row(row: Row) -> bytes:
    """Return the row as a line. Rows have a time `at`; all other values are JSON."""
    return f"{_ENCODE(row)}\n".encode()


class AbandonedBatch(NamedTuple):
    """A batch of rows of a replica that has ended."""

    name: str
    number: int
    rows: list[Row]
    delete: Callable[[], None]
    """Deletes the batch. Call it after the rows are stored; otherwise the batch is listed again."""


class WriteAheadLog:
    """A replica's batches of rows, as files `<name>-<number>.jsonl` in a folder that the replicas of one log share.

    After `append`, rows survive the end of the process, but not the loss of the node. A replica locks the file
    `<name>.lock` while it runs. Another replica that can lock this file writes the abandoned batches.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._folder = folder
        self._file: FileIO | None = None
        self._number = -1
        self._last_error = ""
        private_folder(folder)
        unlocked = folder / f"{self.name}.begun"
        self._lock = unlocked.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(folder / f"{self.name}.lock")  # after locking: an unlocked `.lock` file means an ended replica

    def append(self, number: int, lines: bytes) -> bool:
        """Append lines to the batch `number`, which must not decrease between calls.

        Return False, and log the error once, if the disk is full or fails. The batch then has none of the lines.
        """
        try:
            if self._file is None or number != self._number:
                if self._file is not None:
                    self._file.close()
                self._number = number
                self._file = self._path(self.name, number).open("ab", buffering=0)
            size = self._file.seek(0, os.SEEK_END)
            try:
                if self._file.write(lines) != len(lines):  # the kernel has the rows before the response is sent
                    raise OSError("the disk is full")
            except OSError:
                self._file.truncate(size)
                raise
        except OSError as error:
            self._report(error)
            return False
        return True

    def rows(self, number: int) -> list[Row]:
        """Return the rows of a batch."""
        return _read_rows(self._path(self.name, number))

    def delete(self, number: int) -> None:
        """Delete a batch whose rows are stored."""
        try:
            self._path(self.name, number).unlink(missing_ok=True)
        except OSError as error:  # the batch will be written again, to the same file
            self._report(error)

    def abandoned_batches(self) -> Iterator[AbandonedBatch]:
        """Yield the batches that ended replicas did not store."""
        for lock in sorted(self._folder.glob("*.lock")):
            if lock.stem == self.name:
                continue
            try:
                yield from self._batches_of(lock)
            except (OSError, UnicodeError) as error:
                self._report(error)

    def _batches_of(self, lock: Path) -> Iterator[AbandonedBatch]:
        with lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for path in sorted(self._folder.glob(f"{lock.stem}-*.jsonl")):
                yield AbandonedBatch(lock.stem, int(path.stem.rpartition("-")[2]), _read_rows(path), path.unlink)
            if not list(self._folder.glob(f"{lock.stem}-*.jsonl")):
                lock.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock. Another replica writes the remaining batches."""
        if not list(self._folder.glob(f"{self.name}-*.jsonl")):
            (self._folder / f"{self.name}.lock").unlink(missing_ok=True)
        self._lock.close()

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:06d}.jsonl"

    def _report(self, error: Exception) -> None:
        if str(error) != self._last_error:
            _log.error("rows of the request log are only in memory, because of a disk error: %s", error)
        self._last_error = str(error)


def write_ahead_log_folder() -> Path:
    """Return the node's folder for write-ahead logs: TAILORBIRD_JOURNAL, or a folder in the node's cache.

    Use one folder per S3 server, because a replica writes abandoned batches to its own server.
    """
    return Path(os.environ.get("TAILORBIRD_JOURNAL") or cache_folder() / "request-log")


def open_write_ahead_log(folder: Path) -> WriteAheadLog | None:
    """Return a write-ahead log in the folder. If it cannot be created, log the error and return None."""
    try:
        return WriteAheadLog(folder)
    except (OSError, StorageError) as error:
        _log.error("rows of the request log are only in memory, because %s is not usable: %s", folder, error)
        return None


def _read_rows(path: Path) -> list[Row]:
    """Return the rows of a file, without incomplete rows."""
    rows = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            try:
                row = json.loads(line)
                rows.append(row | {"at": datetime.fromisoformat(row["at"])})
            except (ValueError, KeyError, TypeError):
                _log.error("an incomplete row in %s was skipped", path)
    return rows
