"""Record what is read from the shards of a checkpoint of another number of ranks."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from tailorbird.storage import open_file


@contextmanager
def bytes_read() -> Iterator[list[int]]:
    """Yield a list of the bytes of each read of values."""
    reads: list[int] = []

    @contextmanager
    def open_recorded(uri: str) -> Iterator[Any]:
        with open_file(uri) as file:

            def read_at(num_bytes: int, offset: int) -> bytes:
                reads.append(num_bytes)
                return bytes(file.read_at(num_bytes, offset))

            yield mock.Mock(wraps=file, read_at=read_at)

    with mock.patch("training.engine.resharding.open_file", open_recorded):
        yield reads
