"""Beside the request log: rows that wait for the store lie on this node's disk too, so a killed replica loses none."""

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tailorbird.storage.node_cache import cache_folder

_log = logging.getLogger("ray.serve")

Row = dict[str, Any]
MAX_BYTES = 1 << 30
"""Of a replica's rows on disk: the node's other users need it too."""
_ENCODE = json.JSONEncoder(default=datetime.isoformat, check_circular=False, ensure_ascii=False).encode


class AbandonedBatch(NamedTuple):
    """Rows of a replica that is no more, as one batch of its own."""

    name: str
    number: int
    rows: list[Row]
    forget: Callable[[], None]
    """To be called when the store has them; otherwise they are found again."""


class WriteAheadLog:
    """A replica's batches of rows as files `<name>-<number>.jsonl` in a folder that replicas of one log share.

    What `add` was given survives the process, not the node. A file `<name>.lock` is locked while the
    replica lives: who can lock it writes what it left (`abandoned_batches`). Rows have a time `at`; all else is JSON. A disk that
    takes no more is told in the replica's log once, and the batch is then in memory alone.
    """

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex[:12]
        self._folder = folder
        self._file: BinaryIO | None = None
        self._number = -1
        self._sizes: dict[int, int] = {}
        self._broken: set[int] = set()
        self._fault = ""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        begun = folder / f"{self.name}.begun"
        self._lock = begun.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        begun.rename(folder / f"{self.name}.lock")  # not before it is locked: another replica would take it for left

    def add(self, number: int, rows: Sequence[Row]) -> None:
        """Appends rows to the batch of that number; batches come one after the other."""
        try:
            if self._file is None or number != self._number:
                if self._file is not None:
                    self._file.close()
                self._number = number
                self._file = self._path(self.name, number).open("ab")
            text = "".join([f"{_ENCODE(row)}\n" for row in rows]).encode()
            self._sizes[number] = self._sizes.get(number, 0) + len(text)
            if sum(self._sizes.values()) > MAX_BYTES:
                raise OSError(f"{MAX_BYTES >> 20} MiB of rows wait in {self._folder}, which is enough")
            self._file.write(text)
            self._file.flush()  # it is the kernel's now: before the answer leaves
        except OSError as error:
            self._broken |= {self._number, number}
            self._tell(error)

    def holds(self, number: int) -> bool:
        """Whether all rows of a batch that was begun are on disk."""
        return number <= self._number and number not in self._broken

    def rows(self, number: int) -> list[Row]:
        """A batch that it holds."""
        return _read_rows(self._path(self.name, number))

    def written(self, number: int) -> None:
        """Forgets a batch that the store has."""
        self._sizes.pop(number, None)
        try:
            self._path(self.name, number).unlink(missing_ok=True)
        except OSError as error:  # it will be written once more, over the same file
            self._tell(error)

    def abandoned_batches(self) -> Iterator[AbandonedBatch]:
        """Batches of replicas that ended before the store had them."""
        for lock in sorted(self._folder.glob("*.lock")):
            if lock.stem == self.name:
                continue
            try:
                yield from self._left(lock)
            except (OSError, UnicodeError) as error:
                self._tell(error)

    def _left(self, lock: Path) -> Iterator[AbandonedBatch]:
        with lock.open("r+") as left:
            try:
                fcntl.flock(left, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            for path in sorted(self._folder.glob(f"{lock.stem}-*.jsonl")):
                yield AbandonedBatch(lock.stem, int(path.stem.rpartition("-")[2]), _read_rows(path), path.unlink)
            if not list(self._folder.glob(f"{lock.stem}-*.jsonl")):
                lock.unlink(missing_ok=True)

    def close(self) -> None:
        """Gives up the lock: what is left is another replica's."""
        if not list(self._folder.glob(f"{self.name}-*.jsonl")):
            (self._folder / f"{self.name}.lock").unlink(missing_ok=True)
        self._lock.close()

    def _path(self, name: str, number: int) -> Path:
        return self._folder / f"{name}-{number:06d}.jsonl"

    def _tell(self, error: Exception) -> None:
        if str(error) != self._fault:
            _log.error("rows of the request log may be in memory alone, the disk says: %s", error)
        self._fault = str(error)


def write_ahead_log_folder() -> Path:
    """Where journals lie on this node: TAILORBIRD_JOURNAL, or with what else the node keeps.

    One folder is for one store: what replicas left is written to the store of those that come after them.
    """
    return Path(os.environ.get("TAILORBIRD_JOURNAL") or cache_folder() / "request-log")


def open_write_ahead_log(folder: Path) -> WriteAheadLog | None:
    """A journal in the folder; None, and a word in the log, where there can be none."""
    try:
        return WriteAheadLog(folder)
    except OSError as error:
        _log.error("rows of the request log are in memory alone, no file can be made in %s: %s", folder, error)
        return None


def _read_rows(path: Path) -> list[Row]:
    """What stands in a file; a last line that was cut off is left out."""
    rows = []
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            try:
                row = json.loads(line)
                rows.append(row | {"at": datetime.fromisoformat(row["at"])})
            except (ValueError, KeyError, TypeError):
                _log.error("a row in %s was cut off", path)
    return rows
