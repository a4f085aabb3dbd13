"""The test-set ledger of a registry: the record of every access to test rows.

A row is known by its hash (see `data.fingerprints`), in all tasks of the registry. Each distinct
row of an access has a number: 1 if no earlier access contains the row, k if k - 1 do. The numbers
give the level of the test: see `share_of_alpha`.

The ledger has three parts. The hashes of a test set are stored once, however often it is used. The
order contains 16 bytes for each access of any task: its id and that of its test set. `Ledger`
contains the entries of a task. An access counts once it is in the order. Hashes have no key:
everyone who can read the ledger can check whether a text is in it.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from tailorbird.config.base import digest
from tailorbird.registry.versions import Frozen, now
from tailorbird.storage import exists, read_bytes, update_bytes, write_bytes
from tailorbird.storage.objects import NUM_TRANSFERS
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError
from tailorbird.storage.stored_model import StoredModel

Hashes = NDArray[np.uint64]
Order = NDArray[np.uint64]  # [accesses, 2]: ids of an access and of its test set


class RowUse(Frozen):
    """How much the distinct rows of an access were used before."""

    number: int
    """1 + the most earlier accesses to one of the rows."""
    num_rows: int
    num_seen: int
    """Rows that are in an earlier access."""
    alpha_share: float
    """Level of the test as a share of alpha, in (0, 1]; 1 if no row is in an earlier access."""


class TestSetAccess(RowUse):
    """An entry of the ledger."""

    __test__: ClassVar[bool] = False  # pytest must not collect this class
    rows: str  # sha256 of the sorted hashes of the distinct rows
    models: tuple[str, ...]  # URIs of the compared models, the incumbent first
    protocol: str  # digest of the test protocol
    run: str  # URI of the run
    at: str  # ISO 8601


class Ledger(StoredModel):
    """The accesses of a task, in order."""

    entries: tuple[TestSetAccess, ...] = ()


def share_of_alpha(numbers: NDArray[np.int64]) -> float:
    """Return the level of a test as a share of alpha, from the number of each of its rows.

    It is the mean over the rows of 1 for a row with the number 1, and of 1 / (k (k + 1)) for one
    with the number k >= 2. The shares of all tests of the same rows sum to less than 1.5. A false
    improvement has half of each level, so its rate over all these tests is below alpha. Fresh rows
    add a level, because they are fresh evidence.
    """
    return float(np.where(numbers == 1, 1.0, 1 / (numbers * (numbers + 1))).mean())


def row_use(numbers: NDArray[np.int64]) -> RowUse:
    """Return the use of the rows of an access, from the number of each row."""
    return RowUse(
        number=int(numbers.max()),
        num_rows=len(numbers),
        num_seen=int(np.count_nonzero(numbers > 1)),
        alpha_share=share_of_alpha(numbers),
    )


def record_test_access(
    task_uri: str, *, rows: Hashes, models: Sequence[str], protocol: str, run: str
) -> TestSetAccess:
    """Add an access to the ledger of the task's registry and return its entry.

    Return the existing entry if the same models were compared on the same rows with this protocol
    before. `rows` are the hashes of the rows, in any order. `protocol` is the digest of the test
    protocol, so a test with another minimum gain or without a gate is a further access. Call this
    function before the first prediction, because a run may fail after its results are visible.
    Raises StorageError if the ledger cannot be read or written, and ValueError if there are no
    models or rows.
    """
    if not models:
        raise ValueError("there are no models; give the URIs of the compared models")
    distinct = _distinct(rows)
    rows_digest = digest_of_rows(distinct)
    identity = _identity(models, protocol=protocol, rows=rows_digest)

    # Rows first, so that each test set in the order is stored.
    rows_uri = _rows_uri(task_uri, short_id(rows_digest))
    if not exists(rows_uri):
        write_bytes(rows_uri, _to_bytes(distinct))
    order = _add_to_order(task_uri, access=short_id(identity), test_set=short_id(rows_digest))

    use = _count_use(task_uri, distinct, earlier=_sets_before(order, identity))
    entry = TestSetAccess(
        **use.model_dump(),
        rows=rows_digest,
        models=tuple(models),
        protocol=protocol,
        run=run,
        at=now(),
    )
    uri = TaskPaths(task_uri).test_set_ledger

    def add(content: bytes | None) -> bytes | None:
        entries = _entries(uri, content)
        if _find(entries, identity):
            return None
        return Ledger(entries=(*entries, entry)).model_dump_json(indent=1).encode()

    recorded = _find(_entries(uri, update_bytes(uri, add)), identity)
    assert recorded is not None
    return recorded


def next_access(task_uri: str, *, rows: Hashes) -> RowUse:
    """Return the use of these rows in a new access, without recording one."""
    return _count_use(task_uri, _distinct(rows), earlier=_read_order(task_uri)[:, 1])


def read_test_accesses(task_uri: str) -> tuple[TestSetAccess, ...]:
    """Return the accesses of the task, in order."""
    uri = TaskPaths(task_uri).test_set_ledger
    return _entries(uri, _read(uri))


def recount_access(task_uri: str, *, access: TestSetAccess) -> TestSetAccess | None:
    """Return the ledger's entry for `access`, with the use of its rows counted again; None if there
    is no entry.

    Raises StorageError if a part of the ledger is missing or damaged.
    """
    identity = _identity(access.models, protocol=access.protocol, rows=access.rows)
    entry = _find(read_test_accesses(task_uri), identity)
    if entry is None:
        return None
    order = _read_order(task_uri)
    rows = _read_rows(task_uri, short_id(entry.rows))
    if short_id(identity) not in order[:, 0]:
        raise StorageError(
            f"{TaskPaths(task_uri).test_set_order} does not contain the access of {entry.run}; "
            "restore the file from a copy"
        )
    use = _count_use(task_uri, rows, earlier=_sets_before(order, identity))
    return entry.model_copy(update=use.model_dump())


def digest_of_rows(rows: Hashes) -> str:
    """Return the sha256 of sorted hashes, in hex."""
    return hashlib.sha256(_to_bytes(rows)).hexdigest()


def short_id(digest: str) -> int:
    """Return the id of the access or the test set with this digest."""
    return int(digest[:16], 16)


def _to_bytes(ids: Hashes) -> bytes:
    return ids.astype("<u8").tobytes()


def _rows_uri(task_uri: str, test_set: int) -> str:
    return TaskPaths(task_uri).test_rows(f"{test_set:016x}")


def _read_rows(task_uri: str, test_set: int) -> Hashes:
    """Return the sorted hashes of a test set; raise StorageError if they are missing or damaged."""
    uri = _rows_uri(task_uri, test_set)
    content = _read(uri) or b""
    if short_id(hashlib.sha256(content).hexdigest()) != test_set:
        raise StorageError(
            f"{uri} is missing or does not contain the test set with this id; restore the file "
            "from a copy"
        )
    return np.frombuffer(content, "<u8")


def _count_use(task_uri: str, rows: Hashes, *, earlier: Hashes) -> RowUse:
    """Return the use of distinct rows; `earlier` are the test sets of the earlier accesses.

    Each test set is read once: a registry with 1,000 test sets needs some seconds.
    """
    accesses = Counter(earlier.tolist())
    numbers = np.ones(len(rows), np.int64)
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        test_sets = pool.map(partial(_read_rows, task_uri), accesses)
        for count, known in zip(accesses.values(), test_sets, strict=True):
            numbers[np.isin(rows, known)] += count
    return row_use(numbers)


def _add_to_order(task_uri: str, *, access: int, test_set: int) -> Order:
    """Add an access to the order unless it contains the access, and return the order."""
    uri = TaskPaths(task_uri).test_set_order

    def add(content: bytes | None) -> bytes | None:
        if access in _parse_order(uri, content)[:, 0]:
            return None
        return (content or b"") + _to_bytes(np.array([access, test_set], np.uint64))

    return _parse_order(uri, update_bytes(uri, add))


def _read_order(task_uri: str) -> Order:
    uri = TaskPaths(task_uri).test_set_order
    return _parse_order(uri, _read(uri))


def _parse_order(uri: str, content: bytes | None) -> Order:
    ids = content or b""
    if len(ids) % 16:
        raise StorageError(f"{uri} is not a valid order of accesses; restore the file from a copy")
    return np.frombuffer(ids, "<u8").reshape(-1, 2)


def _sets_before(order: Order, identity: str) -> Hashes:
    """Return the ids of the test sets of the accesses before this one."""
    (position,) = np.flatnonzero(order[:, 0] == short_id(identity))
    return order[:position, 1]


def _read(uri: str) -> bytes | None:
    if exists(uri):
        return read_bytes(uri)
    return None


def _distinct(rows: Hashes) -> Hashes:
    if not len(rows):
        raise ValueError("there are no test rows; give at least one")
    return np.unique(rows)


def _identity(models: Sequence[str], *, protocol: str, rows: str) -> str:
    """Return a digest of all that makes a test another access."""
    return digest({"models": list(models), "protocol": protocol, "rows": rows})


def _find(entries: Sequence[TestSetAccess], identity: str) -> TestSetAccess | None:
    for entry in entries:
        if _identity(entry.models, protocol=entry.protocol, rows=entry.rows) == identity:
            return entry
    return None


def _entries(uri: str, content: bytes | None) -> tuple[TestSetAccess, ...]:
    """Parse a ledger; one that does not exist has no entries."""
    if content is None:
        return ()
    try:
        return Ledger.model_validate_json(content).entries
    except ValidationError as error:
        raise StorageError(
            f"{uri} is not a valid test-set ledger: {error}; restore the file from a copy"
        ) from None
