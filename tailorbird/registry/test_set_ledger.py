"""The test-set ledger of a registry: the record of every access to test rows.

Rows are counted by their content. An access is the n-th access to its rows if n is the smallest number such that at
most `IGNORED_SHARE` of the rows are in n or more earlier accesses. Each further access is tested at a lower level
(`verdict.protocol.spent_alpha`).

Rows are stored as keyed, truncated hashes. The ledger contains the key, so a reader of the registry can check whether a
guessed row is in it. Hashes of different registries cannot be compared.
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tailorbird.registry.versions import Frozen, now
from tailorbird.storage import exists, read_bytes, update_json, write_bytes
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError
from tailorbird.storage.stored_model import StoredModel

IGNORED_SHARE = 0.05
"""Share of the rows that may be in earlier accesses without being counted: short texts recur in unrelated sets."""
HASH_BYTES = 8  # among 10 million rows, two have the same hash with a probability of 3e-6
Hashes = NDArray[np.uint64]


class TestSetAccess(Frozen):
    """An entry of the ledger."""

    __test__: ClassVar[bool] = False  # pytest must not collect this class
    number: int  # 1 for the first access to these rows
    num_rows: int  # distinct rows
    num_seen: int  # distinct rows that are in an earlier access
    rows: str  # sha256 of the file with the rows' hashes
    models: tuple[str, ...]  # URIs of the compared models, the incumbent first
    protocol: str  # digest of the test protocol
    run: str  # URI of the run
    at: str  # ISO 8601


class Ledger(StoredModel):
    """The accesses of all tasks of a registry, in order."""

    key: str  # key of the rows' hashes, in hex
    entries: tuple[TestSetAccess, ...] = ()


def record_test_access(
    task_uri: str, *, contents: Iterable[tuple[str, str]], models: Sequence[str], protocol: str, run: str
) -> TestSetAccess:
    """Add an access to the ledger of the task's registry and return its entry.

    Return the existing entry if the same models were compared on the same rows with this protocol before. `contents`
    yields the normalised text and the label of each row. `protocol` is the digest of the test protocol, so a test with
    another minimum gain or without a gate is a further access. Call this function before the first prediction, because
    a run may fail after its results are visible. Raises StorageError if the ledger cannot be read or written, and
    ValueError if there are no models or rows.
    """
    if not models:
        raise ValueError("there are no models; give the URIs of the compared models")
    uri = TaskPaths(task_uri).test_set_ledger
    ledger = _parse(uri, update_json(uri, lambda stored: _new_ledger() if stored is None else None))
    hashes = hash_rows(contents, key=ledger.key)
    rows = hashlib.sha256(hashes.tobytes()).hexdigest()
    # Store the rows before the entry, so that every entry has its rows.
    write_bytes(TaskPaths(task_uri).test_set_rows(rows), hashes.tobytes())
    read_rows = cache(lambda digest: _read_rows(task_uri, digest))  # each attempt of an update reads the same rows

    def find(entries: Sequence[TestSetAccess]) -> TestSetAccess | None:
        key = (tuple(models), protocol, rows)
        return next((entry for entry in entries if _key(entry) == key), None)

    def add(stored: object) -> object:
        current = _parse(uri, stored)
        if find(current.entries):
            return None
        number, num_seen = count_access(hashes, earlier=[read_rows(entry.rows) for entry in current.entries])
        entry = TestSetAccess(
            number=number,
            num_rows=len(hashes),
            num_seen=num_seen,
            rows=rows,
            models=tuple(models),
            protocol=protocol,
            run=run,
            at=now(),
        )
        return current.model_copy(update={"entries": (*current.entries, entry)}).model_dump(mode="json")

    access = find(_parse(uri, update_json(uri, add)).entries)
    assert access is not None
    return access


def next_access(task_uri: str, *, contents: Iterable[tuple[str, str]]) -> tuple[int, int]:
    """Return the number that a new access to these rows would have, and the number of rows in an earlier access."""
    uri = TaskPaths(task_uri).test_set_ledger
    if not exists(uri):
        return 1, 0
    ledger, read_rows = _parse(uri, read_bytes(uri)), cache(lambda digest: _read_rows(task_uri, digest))
    hashes = hash_rows(contents, key=ledger.key)
    return count_access(hashes, earlier=[read_rows(entry.rows) for entry in ledger.entries])


def read_test_accesses(task_uri: str) -> tuple[TestSetAccess, ...]:
    """Return all accesses of the task's registry, in order."""
    uri = TaskPaths(task_uri).test_set_ledger
    return _parse(uri, read_bytes(uri)).entries if exists(uri) else ()


def recount_access(task_uri: str, *, access: TestSetAccess) -> TestSetAccess | None:
    """Return the ledger's entry for `access` with recomputed counts; None if there is no entry.

    Raises StorageError if the ledger or the rows of an entry are missing or damaged.
    """
    entries = read_test_accesses(task_uri)
    index = next((i for i, entry in enumerate(entries) if _key(entry) == _key(access)), None)
    if index is None:
        return None
    hashes = _read_rows(task_uri, access.rows)
    earlier = [_read_rows(task_uri, entry.rows) for entry in entries[:index]]
    number, num_seen = count_access(hashes, earlier=earlier)
    return entries[index].model_copy(update={"number": number, "num_rows": len(hashes), "num_seen": num_seen})


def hash_rows(contents: Iterable[tuple[str, str]], *, key: str) -> Hashes:
    """Return the sorted hashes of the distinct rows (text and label); raise ValueError if there are none."""
    secret, digests = bytes.fromhex(key), []
    for text, label in contents:
        encoded = text.encode("utf-8", "surrogatepass")
        content = len(encoded).to_bytes(8, "big") + encoded + label.encode("utf-8", "surrogatepass")
        digests.append(hashlib.blake2b(content, digest_size=HASH_BYTES, key=secret).digest())
    if not digests:
        raise ValueError("there are no test rows; give at least one")
    return np.unique(np.frombuffer(b"".join(digests), dtype="<u8"))


def count_access(hashes: Hashes, *, earlier: Iterable[Hashes]) -> tuple[int, int]:
    """Return the number of an access to these rows, from 1, and the number of rows in an earlier access."""
    times = np.zeros(len(hashes), np.int64)
    for other in earlier:
        times += np.isin(hashes, other, assume_unique=True)
    num_ignored = int(IGNORED_SHARE * len(hashes))
    return 1 + int(np.sort(times)[::-1][num_ignored]), int(np.count_nonzero(times))


def _key(entry: TestSetAccess) -> tuple[tuple[str, ...], str, str]:
    """Return the identity of an entry: models, protocol and rows."""
    return entry.models, entry.protocol, entry.rows


def _new_ledger() -> object:
    return Ledger(key=secrets.token_hex(16)).model_dump(mode="json")


def _read_rows(task_uri: str, digest: str) -> Hashes:
    """Read the hashes of an entry's rows; raise StorageError if the file is damaged."""
    uri = TaskPaths(task_uri).test_set_rows(digest)
    content = read_bytes(uri)
    if hashlib.sha256(content).hexdigest() != digest:
        raise StorageError(f"{uri} was changed: its sha256 differs from its name; restore the file from a copy")
    return np.frombuffer(content, dtype="<u8")


def _parse(uri: str, content: object) -> Ledger:
    """Parse a ledger from its bytes or its JSON value."""
    try:
        return Ledger.model_validate_json(content) if isinstance(content, bytes) else Ledger.model_validate(content)
    except ValidationError as error:
        raise StorageError(f"{uri} is not a valid test-set ledger: {error}; restore the file from a copy") from None
