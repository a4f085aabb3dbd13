"""The test-set ledger of a registry: the record of every access to test rows.

A row is known by its hash (see `data.fingerprints`), in all tasks of the registry. Each distinct
row of an access has a number: 1 if no earlier access contains the row, k if k - 1 do. The numbers
give the level of the test: see `share_of_alpha`.

The ledger has three parts. A shard contains the rows whose hash begins with the same hexadecimal
digit, with the test sets that contain them; a test set is stored once, however often it is used.
The order contains 16 bytes for each access of any task: its id and that of its test set. `Ledger`
contains the entries of a task. An access counts once it is in the order. Hashes have no key:
whoever can read the ledger can check whether a text is in it.
"""

import hashlib
import io
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ValidationError

from tailorbird.config.base import digest
from tailorbird.registry.versions import Frozen, now
from tailorbird.storage import exists, read_bytes, update_bytes, update_json
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError
from tailorbird.storage.stored_model import StoredModel

DIGITS = "0123456789abcdef"
"""The names of the shards. A test set has rows in each shard, so more of them would only need more
requests."""
NUM_TRANSFERS = 8
SCHEMA = pa.schema({"row": pa.uint64(), "test_set": pa.uint64()})
Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]
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


@dataclass(frozen=True)
class Shard:
    """Pairs of a row and a test set that contains it, sorted by row."""

    rows: Hashes  # [pairs]
    sets: Hashes  # [pairs], ids

    def add(self, rows: Hashes, *, of_set: np.uint64) -> "Shard":
        """Return the shard with these distinct rows of a test set that it does not contain."""
        at = np.searchsorted(self.rows, rows)
        return Shard(np.insert(self.rows, at, rows), np.insert(self.sets, at, of_set))

    def numbers(self, rows: Hashes, *, earlier: Hashes) -> Numbers:
        """Return the number of each of these sorted rows; `earlier` are the sorted ids of the sets
        of each access."""
        start = np.searchsorted(self.rows, rows)
        end = np.searchsorted(self.rows, rows, side="right")
        pairs = np.concatenate([np.arange(*limits) for limits in zip(start, end, strict=True)])
        sets = self.sets[pairs]
        times = np.searchsorted(earlier, sets, side="right") - np.searchsorted(earlier, sets)
        positions = np.repeat(np.arange(len(rows)), end - start)
        return 1 + np.bincount(positions, weights=times, minlength=len(rows)).astype(np.int64)

    def to_parquet(self) -> bytes:
        """Return the shard as a Parquet file."""
        file = io.BytesIO()
        pq.write_table(
            pa.table([self.rows, self.sets], schema=SCHEMA),
            file,
            compression="zstd",
            use_dictionary=["test_set"],
            column_encoding={"row": "DELTA_BINARY_PACKED"},  # sorted hashes have small differences
            write_page_checksum=True,
        )
        return file.getvalue()


def share_of_alpha(numbers: Numbers) -> float:
    """Return the level of a test as a share of alpha, from the number of each of its rows.

    It is the mean over the rows of 1 for a row with the number 1, and of 1 / (k (k + 1)) for one
    with the number k >= 2. The shares of all tests of the same rows sum to less than 1.5. A false
    improvement has half of each level, so its rate over all these tests is below alpha. Fresh rows
    add a level, because they are fresh evidence.
    """
    return float(np.where(numbers == 1, 1.0, 1 / (numbers * (numbers + 1))).mean())


def row_use(numbers: Numbers) -> RowUse:
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
    digest_of_set = digest_of_rows(distinct)
    identity = _identity(models, protocol=protocol, rows=digest_of_set)
    _store_rows(task_uri, distinct)  # first, so that the shards have each test set in the order
    order = _add_to_order(task_uri, access=short_id(identity), test_set=short_id(digest_of_set))
    use = _count_use(task_uri, distinct, earlier=_sets_before(order, identity))
    entry = TestSetAccess(
        **use.model_dump(),
        rows=digest_of_set,
        models=tuple(models),
        protocol=protocol,
        run=run,
        at=now(),
    )
    uri = TaskPaths(task_uri).test_set_ledger

    def add(stored: object) -> object:
        entries = () if stored is None else _parse(uri, stored).entries
        known = _find(entries, identity)
        if known:
            return None
        return Ledger(entries=(*entries, entry)).model_dump(mode="json")

    recorded = _find(_parse(uri, update_json(uri, add)).entries, identity)
    assert recorded is not None
    return recorded


def next_access(task_uri: str, *, rows: Hashes) -> RowUse:
    """Return the use of these rows in a new access, without recording one."""
    return _count_use(task_uri, _distinct(rows), earlier=_read_order(task_uri)[:, 1])


def read_test_accesses(task_uri: str) -> tuple[TestSetAccess, ...]:
    """Return the accesses of the task, in order."""
    uri = TaskPaths(task_uri).test_set_ledger
    content = _read(uri)
    if content is None:
        return ()
    return _parse(uri, content).entries


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
    shards = _read_shards(task_uri, digits=DIGITS)
    rows = np.concatenate([shard.rows[shard.sets == short_id(entry.rows)] for shard in shards])
    if short_id(identity) not in order[:, 0] or digest_of_rows(rows) != entry.rows:
        folder = f"{TaskPaths(task_uri).registry}/_ledger"
        raise StorageError(
            f"{folder} does not contain the rows of {entry.run}; restore the folder from a copy"
        )
    use = _count_use(task_uri, rows, earlier=_sets_before(order, identity))
    return entry.model_copy(update=use.model_dump())


def parts_by_digit(rows: Hashes) -> dict[str, Hashes]:
    """Return sorted hashes by their first hexadecimal digit."""
    bounds = np.arange(1, len(DIGITS), dtype=np.uint64) << np.uint64(60)
    parts = np.split(rows, np.searchsorted(rows, bounds))
    return {digit: part for digit, part in zip(DIGITS, parts, strict=True) if len(part)}


def digest_of_rows(rows: Hashes) -> str:
    """Return the sha256 of sorted hashes, in hex."""
    return hashlib.sha256(rows.astype("<u8").tobytes()).hexdigest()


def short_id(digest: str) -> np.uint64:
    """Return the id of the access or the test set with this digest."""
    return np.uint64(int(digest[:16], 16))


def _store_rows(task_uri: str, rows: Hashes) -> None:
    """Add a test set to the shards that do not contain it."""
    of_set = short_id(digest_of_rows(rows))

    def store(digit: str, part: Hashes) -> None:
        uri = TaskPaths(task_uri).test_rows(digit)

        def add(content: bytes | None) -> bytes | None:
            shard = _parse_shard(uri, content)
            if of_set in shard.sets:
                return None
            return shard.add(part, of_set=of_set).to_parquet()

        update_bytes(uri, add)

    parts = parts_by_digit(rows)
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        list(pool.map(store, parts.keys(), parts.values()))


def _count_use(task_uri: str, rows: Hashes, *, earlier: Hashes) -> RowUse:
    """Return the use of sorted rows; `earlier` are the ids of the test sets of the earlier
    accesses."""
    parts = parts_by_digit(rows)
    shards = _read_shards(task_uri, digits=parts.keys())
    used = np.sort(earlier)
    numbers = [
        shard.numbers(part, earlier=used)
        for shard, part in zip(shards, parts.values(), strict=True)
    ]
    return row_use(np.concatenate(numbers))


def _read_shards(task_uri: str, *, digits: Iterable[str]) -> list[Shard]:
    def read(uri: str) -> Shard:
        return _parse_shard(uri, _read(uri))

    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        return list(pool.map(read, map(TaskPaths(task_uri).test_rows, digits)))


def _add_to_order(task_uri: str, *, access: np.uint64, test_set: np.uint64) -> Order:
    """Add an access to the order unless it contains the access, and return the order."""
    uri = TaskPaths(task_uri).test_set_order

    def add(content: bytes | None) -> bytes | None:
        if access in _parse_order(uri, content)[:, 0]:
            return None
        return (content or b"") + np.array([access, test_set], "<u8").tobytes()

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


def _parse_shard(uri: str, content: bytes | None) -> Shard:
    if content is None:
        return Shard(np.array([], np.uint64), np.array([], np.uint64))
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        if not file.schema_arrow.equals(SCHEMA):
            raise pa.ArrowInvalid(f"its columns are {file.schema_arrow.names}")
        columns = [column.combine_chunks() for column in file.read(use_threads=False).columns]
        # `to_numpy` would import pandas.
        return Shard(*(np.asarray(np.from_dlpack(column), np.uint64) for column in columns))
    except (pa.ArrowException, OSError) as error:
        raise StorageError(
            f"{uri} is not a valid shard of test rows: {error}; restore the file from a copy"
        ) from None


def _distinct(rows: Hashes) -> Hashes:
    if not len(rows):
        raise ValueError("there are no test rows; give at least one")
    return np.unique(rows)


def _identity(models: Sequence[str], *, protocol: str, rows: str) -> str:
    """Return a digest of all that makes a test another access."""
    return digest({"models": list(models), "protocol": protocol, "rows": rows})


def _find(entries: Sequence[TestSetAccess], identity: str) -> TestSetAccess | None:
    identities = [
        _identity(entry.models, protocol=entry.protocol, rows=entry.rows) for entry in entries
    ]
    if identity in identities:
        return entries[identities.index(identity)]
    return None


def _parse(uri: str, content: object) -> Ledger:
    """Parse a ledger from its bytes or its JSON value."""
    try:
        if isinstance(content, bytes):
            return Ledger.model_validate_json(content)
        return Ledger.model_validate(content)
    except ValidationError as error:
        raise StorageError(
            f"{uri} is not a valid test-set ledger: {error}; restore the file from a copy"
        ) from None
