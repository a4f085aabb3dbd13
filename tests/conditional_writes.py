"""Checks of conditional writes, for local files and for objects on S3."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tailorbird import storage
from tailorbird.storage import s3


def check_etags(uri: str) -> str:
    """Check that a new file is written only with its current ETag, and return this ETag. The
    content is then `2`."""
    assert storage.read_versioned(uri) is None
    first = storage.write_if_match(uri, b"1", etag=None)
    with pytest.raises(s3.PreconditionFailed):
        storage.write_if_match(uri, b"2", etag=None)
    second = storage.write_if_match(uri, b"2", etag=first)
    with pytest.raises(s3.PreconditionFailed):
        storage.write_if_match(uri, b"3", etag=first)
    assert storage.read_versioned(uri) == (b"2", second)
    (entry,) = storage.file_entries([uri])
    assert entry is not None
    assert entry.size_bytes == 1
    return second


def check_absent_file(uri: str, *, etag: str) -> None:
    """Delete a file twice, and check that a write with its previous ETag fails."""
    storage.delete(uri)
    storage.delete(uri)
    assert not storage.exists(uri)
    with pytest.raises(s3.PreconditionFailed):
        storage.write_if_match(uri, b"4", etag=etag)


def check_concurrent_changes(uri: str, *, num_changes: int) -> None:
    """Check that no line that concurrent writers add is lost."""

    def count(number: int) -> None:
        storage.update_bytes(uri, lambda lines: (lines or b"") + f"{number}\n".encode())

    with ThreadPoolExecutor(
        8
    ) as pool:  # each writer opens the file or object itself, as a separate process does
        list(pool.map(count, range(num_changes)))
    assert sorted(map(int, storage.read_bytes(uri).split())) == list(range(num_changes))
