"""Write-ahead log on the node's disk: the buffer of rows that are not yet on S3, also if a replica
is killed."""

import fcntl
import io
import json
import os
import uuid
from collections.abc import Iterator
from datetime import datetime
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from serving.request_log.schema import Row
from tailorbird.storage import StorageError
from tailorbird.storage.node_cache import cache_folder, private_folder

if TYPE_CHECKING:
    import pyarrow as pa

_ENCODE = json.JSONEncoder(
    default=datetime.isoformat, check_circular=False, ensure_ascii=False
).encode


def encode_row(row: Row) -> bytes:
    """Return the row as a line. Rows have a time `at`; all other values are JSON."""
    return f"{_ENCODE(row)}\n".encode()


def read_batch(path: Path, *, schema: "pa.Schema") -> "pa.Table":
    """Return the rows of a batch, without an incomplete last one, which a killed process leaves."""
    import pyarrow.json

    lines = path.read_bytes()
    complete = lines[: lines.rfind(b"\n") + 1]
    if not complete:
        return schema.empty_table()
    # A row must fit into a block.
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=len(complete))
    parsing = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    return pyarrow.json.read_json(io.BytesIO(complete), read_options=reading, parse_options=parsing)


class WriteAheadLog:
    """A replica's batches of rows, as files `<name>-<number>.jsonl` in a folder that the replicas
    of one log share.

    After `append`, rows survive the end of the process, but not the loss of the node. A replica
    locks the file `<name>.lock` while it runs. Another replica that can lock this file writes the
    abandoned batches.
    """

    def __init__(self, folder: Path) -> None:
        self._name = uuid.uuid4().hex[:12]
        self._folder = folder
        self._number = 0
        self._file: FileIO | None = None
        try:
            private_folder(folder)
            unlocked = folder / f"{self._name}.begun"
            self._lock = unlocked.open("w")
        except OSError as error:
            raise StorageError(
                f"{folder} is not usable for the request log: {error}; set TAILORBIRD_JOURNAL to a "
                "folder of this user"
            ) from None
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # After locking: an unlocked `.lock` file means an ended replica.
        unlocked.rename(folder / f"{self._name}.lock")

    def append(self, line: bytes) -> None:
        """Append a line to the open batch. The kernel has it when this returns.

        Raises OSError if the disk is full or fails. The batch then has no part of the line.
        """
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        size = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError("the disk is full")
        except OSError:
            self._file.truncate(size)
            raise

    def seal(self) -> Path:
        """Close the open batch and return its file. The next line is in another batch."""
        path = self._path
        if self._file is not None:
            self._file.close()
        self._file = None
        self._number += 1
        return path

    def abandoned_batches(self) -> Iterator[Path]:
        """Yield the batches that ended replicas did not store. Delete each after storing it."""
        for lock in sorted(self._folder.glob("*.lock")):
            if lock.stem != self._name:
                yield from self._batches_of(lock)

    def _batches_of(self, lock: Path) -> Iterator[Path]:
        with lock.open("r+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            yield from sorted(self._folder.glob(f"{lock.stem}-*.jsonl"))
            if not list(self._folder.glob(f"{lock.stem}-*.jsonl")):
                lock.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock. Another replica writes the remaining batches."""
        self.seal()
        if not list(self._folder.glob(f"{self._name}-*.jsonl")):
            (self._folder / f"{self._name}.lock").unlink(missing_ok=True)
        self._lock.close()

    @property
    def _path(self) -> Path:
        return self._folder / f"{self._name}-{self._number:06d}.jsonl"


def write_ahead_log_folder() -> Path:
    """Return the node's folder for write-ahead logs: TAILORBIRD_JOURNAL, or a folder in the node's
    cache.

    Use one folder per S3 server, because a replica writes abandoned batches to its own server.
    """
    return Path(os.environ.get("TAILORBIRD_JOURNAL") or cache_folder() / "request-log")
