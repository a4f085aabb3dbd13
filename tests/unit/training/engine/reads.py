"""Record what is read from the shards of a checkpoint of another number of ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import RawIOBase
from typing import Any
from unittest import mock

from tailorbird.storage import open_file


class RecordedFile(RawIOBase):
    def __init__(self, file: Any, reads: list[int]) -> None:
        self._file = file
        self._reads = reads

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: Any) -> int:
        self._reads.append(int(self._file.readinto(buffer)))
        return self._reads[-1]


@contextmanager
def bytes_read() -> Iterator[list[int]]:
    """Yield a list of the bytes of each read of values."""
    reads: list[int] = []

    @contextmanager
    def open_recorded(uri: str) -> Iterator[Any]:
        with open_file(uri) as file:
            yield RecordedFile(file, reads)

    with mock.patch("training.engine.resharding.open_file", open_recorded):
        yield reads
