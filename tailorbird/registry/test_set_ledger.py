"""The test-set ledger of a registry: the record of every access to test rows.

A row is known by its hash (see `data.fingerprints`), in all tasks of the registry. Each distinct row of an access has a
number: 1 if no earlier access contains the row, k if k - 1 do. The numbers give the level of the test: see
`share_of_alpha`.

The ledger has two parts. A shard contains all accesses to the rows whose hash begins with the same hexadecimal digit.
A `Ledger` contains the accesses of a task. Hashes have no key: whoever can read the ledger can check whether a text is
in it.
"""

import hashlib
import io
from collections.abc import Callable, Iterator, Sequence
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
from tailorbird.storage import exists, list_files, read_bytes, update_bytes, update_json
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError
from tailorbird.storage.stored_model import StoredModel

DIGITS = "0123456789abcdef"
"""The names of the shards. A test set has rows in each shard, so more of them would only need more requests."""
NUM_TRANSFERS = 8
Hashes = NDArray[np.uint64]
Numbers = NDArray[np.int64]


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
    """Pairs of a row and an access to it, by row. The accesses to a row are in the order in which they were added."""

    rows: Hashes  # [pairs]
    accesses: Hashes  # [pairs], ids

    def add(self, rows: Hashes, *, access: np.uint64) -> "Shard":
        """Return the shard with an access to these distinct rows, or the same shard if it contains the access."""
        if access in self.accesses:
            return self
        at = np.searchsorted(self.rows, rows, side="right")
        return Shard(np.insert(self.rows, at, rows), np.insert(self.accesses, at, access))

    def rows_of(self, access: np.uint64) -> tuple[Hashes, Numbers]:
        """Return the rows of an access and the number of each."""
        at = np.flatnonzero(self.accesses == access)
        rows = self.rows[at]
        return rows, 1 + at - np.searchsorted(self.rows, rows)

    def to_parquet(self) -> bytes:
        """Return the shard as a Parquet file."""
        file = io.BytesIO()
        table = pa.table({"row": self.rows, "access": self.accesses})
        pq.write_table(
            table,
            file,
            compression="zstd",
            use_dictionary=["access"],
            column_encoding={"row": "DELTA_BINARY_PACKED"},  # sorted hashes have small differences
            write_page_checksum=True,
        )
        return file.getvalue()


EMPTY = Shard(np.array([], np.uint64), np.array([], np.uint64))


def share_of_alpha(numbers: Numbers) -> float:
    """Return the level of a test as a share of alpha, from the number of each of its rows.

    It is the mean over the rows of 1 for a row with the number 1, and of 1 / (k (k + 1)) for one with the number
    k >= 2. The shares of all tests of the same rows sum to less than 1.5. A gain above 0 has half of each level, so a
    false improvement has an error rate below alpha over all these tests.
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


def record_test_access(task_uri: str, *, rows: Hashes, models: Sequence[str], protocol: str, run: str) -> TestSetAccess:
    """Add an access to the ledger of the task's registry and return its entry.

    Return the existing entry if the same models were compared on the same rows with this protocol before. `rows` are
    the hashes of the rows, in any order. `protocol` is the digest of the test protocol, so a test with another minimum
    gain or without a gate is a further access. Of concurrent accesses to a row, one is the earlier one for this row,
    and counts for the other. Call this function before the first prediction, because a run may fail after its results
    are visible. If the function is interrupted, the access may count for later ones, and has the same numbers when it
    is recorded again. Raises StorageError if the ledger cannot be read or written, and ValueError if there are no
    models or rows.
    """
    if not models:
        raise ValueError("there are no models; give the URIs of the compared models")
    distinct = _distinct(rows)
    digest_of_rows = _sha256(distinct)
    identity = _identity(models, protocol=protocol, rows=digest_of_rows)
    recorded = _find(read_test_accesses(task_uri), identity)
    if recorded is not None:
        return recorded
    numbers = _map_shards(
        task_uri, distinct, function=lambda uri, part: _add_to_shard(uri, part, access=_access_id(identity))
    )
    entry = TestSetAccess(
        **row_use(numbers).model_dump(),
        rows=digest_of_rows,
        models=tuple(models),
        protocol=protocol,
        run=run,
        at=now(),
    )
    uri = TaskPaths(task_uri).test_set_ledger

    def add(stored: object) -> object:
        entries = () if stored is None else _parse(uri, stored).entries
        known = _find(entries, identity)
        return None if known else Ledger(entries=(*entries, entry)).model_dump(mode="json")

    recorded = _find(_parse(uri, update_json(uri, add)).entries, identity)
    assert recorded is not None
    return recorded


def next_access(task_uri: str, *, rows: Hashes) -> RowUse:
    """Return the use of these rows in a new access, without recording one."""
    stored = _stored_shards(task_uri)

    def number(uri: str, part: Hashes) -> Numbers:
        if uri not in stored:
            return np.ones(len(part), np.int64)
        (known,) = _read_columns(uri, read_bytes(uri), names=["row"])
        return np.asarray(1 + np.searchsorted(known, part, side="right") - np.searchsorted(known, part))

    return row_use(_map_shards(task_uri, _distinct(rows), function=number))


def read_test_accesses(task_uri: str) -> tuple[TestSetAccess, ...]:
    """Return the accesses of the task, in order."""
    uri = TaskPaths(task_uri).test_set_ledger
    return _parse(uri, read_bytes(uri)).entries if exists(uri) else ()


def recount_access(task_uri: str, *, access: TestSetAccess) -> TestSetAccess | None:
    """Return the ledger's entry for `access`, with the use of its rows counted again; None if there is no entry.

    Raises StorageError if the ledger or the rows of the access are missing or damaged.
    """
    identity = _identity(access.models, protocol=access.protocol, rows=access.rows)
    entry = _find(read_test_accesses(task_uri), identity)
    if entry is None:
        return None
    shards = [EMPTY, *(_parse_shard(uri, read_bytes(uri)) for uri in _stored_shards(task_uri))]
    used = [shard.rows_of(_access_id(identity)) for shard in shards]
    if _sha256(np.concatenate([rows for rows, _ in used])) != entry.rows:
        folder = TaskPaths(task_uri).test_rows
        raise StorageError(f"{folder} does not contain the rows of {entry.run}; restore the folder from a copy")
    numbers = np.concatenate([numbers for _, numbers in used])
    return entry.model_copy(update=row_use(numbers).model_dump())


def _stored_shards(task_uri: str) -> list[str]:
    """Return the URIs of the shards that exist."""
    paths = TaskPaths(task_uri)
    names = {uri.rpartition("/")[2] for uri in list_files(paths.test_rows, missing_ok=True)}
    return [paths.test_rows_shard(digit) for digit in DIGITS if f"{digit}.parquet" in names]


def _map_shards(task_uri: str, rows: Hashes, *, function: Callable[[str, Hashes], Numbers]) -> Numbers:
    """Return the concatenated results of a function of the URI of each shard and of the sorted rows in it."""
    shard_uri, parts = TaskPaths(task_uri).test_rows_shard, parts_by_digit(rows)
    with ThreadPoolExecutor(NUM_TRANSFERS) as pool:
        results = [pool.submit(function, shard_uri(digit), part) for digit, part in parts]
        return np.concatenate([result.result() for result in results])


def parts_by_digit(rows: Hashes) -> Iterator[tuple[str, Hashes]]:
    """Yield the first hexadecimal digits of sorted hashes, each with the hashes that begin with it."""
    bounds = np.arange(1, len(DIGITS), dtype=np.uint64) << np.uint64(60)
    for digit, part in zip(DIGITS, np.split(rows, np.searchsorted(rows, bounds)), strict=True):
        if len(part):
            yield digit, part


def _add_to_shard(uri: str, rows: Hashes, *, access: np.uint64) -> Numbers:
    """Add an access to a stored shard unless the shard contains it, and return the number of each row."""

    def add(content: bytes | None) -> bytes | None:
        shard = _parse_shard(uri, content)
        changed = shard.add(rows, access=access)
        return None if changed is shard else changed.to_parquet()

    return _parse_shard(uri, update_bytes(uri, add)).rows_of(access)[1]


def _distinct(rows: Hashes) -> Hashes:
    if not len(rows):
        raise ValueError("there are no test rows; give at least one")
    return np.unique(rows)


def _identity(models: Sequence[str], *, protocol: str, rows: str) -> str:
    """Return a digest of all that makes a test another access."""
    return digest({"models": list(models), "protocol": protocol, "rows": rows})


def _access_id(identity: str) -> np.uint64:
    return np.uint64(int(identity[:16], 16))


def _find(entries: Sequence[TestSetAccess], identity: str) -> TestSetAccess | None:
    identities = [_identity(entry.models, protocol=entry.protocol, rows=entry.rows) for entry in entries]
    return entries[identities.index(identity)] if identity in identities else None


def _sha256(rows: Hashes) -> str:
    return hashlib.sha256(rows.astype("<u8").tobytes()).hexdigest()


def _parse_shard(uri: str, content: bytes | None) -> Shard:
    return EMPTY if content is None else Shard(*_read_columns(uri, content, names=["row", "access"]))


def _read_columns(uri: str, content: bytes, *, names: Sequence[str]) -> list[Hashes]:
    try:
        file = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True)
        table = file.read(columns=names, use_threads=False)
        return [table[name].to_numpy() for name in names]
    except (pa.ArrowException, OSError, KeyError) as error:
        raise StorageError(f"{uri} is not a valid shard of test rows: {error}; restore the file from a copy") from None


def _parse(uri: str, content: object) -> Ledger:
    """Parse a ledger from its bytes or its JSON value."""
    try:
        return Ledger.model_validate_json(content) if isinstance(content, bytes) else Ledger.model_validate(content)
    except ValidationError as error:
        raise StorageError(f"{uri} is not a valid test-set ledger: {error}; restore the file from a copy") from None
