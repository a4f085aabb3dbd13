"""The test-set ledger, which records every access to a set of test rows; only the first access is confirmatory."""

import re
from typing import ClassVar

from pydantic import ValidationError

from tailorbird.registry.versions import Frozen, now
from tailorbird.storage import exists, list_files, read_bytes, update_json
from tailorbird.storage.paths import TaskPaths
from tailorbird.storage.s3 import StorageError
from tailorbird.storage.stored_model import StoredModel


class TestSetAccess(Frozen):
    """An entry of the ledger."""

    __test__: ClassVar[bool] = False  # tells pytest that this class is not a test case
    number: int  # from 1
    candidate: str  # digest of the candidate's weights
    protocol: str  # digest of the test protocol
    run: str  # URI of the run
    at: str  # ISO 8601


class Ledger(StoredModel):
    """The accesses to a set of test rows, in order."""

    entries: tuple[TestSetAccess, ...] = ()


def record_test_access(task_uri: str, *, test_sha256: str, candidate: str, protocol: str, run: str) -> TestSetAccess:
    """Add an access to the ledger and return its entry.

    Return the existing entry if the candidate was tested with this protocol before. `test_sha256` is
    `data.rows.content_sha256` of the test rows. `candidate` identifies weights, so the same weights with another engine
    keep their entry. `protocol` is the digest of the test protocol, so a test with another minimum gain or without a
    gate is a further access. Call this function before the candidate's first prediction, because a run may fail after
    its results are visible. Raises StorageError if the ledger cannot be read or written, ValueError if `test_sha256` is
    not a sha256.
    """
    if not candidate:
        raise ValueError("candidate is empty; give the digest of its weights")
    uri = _uri(task_uri, test_sha256)

    def add(stored: object) -> object:
        entries = () if stored is None else _parse(uri, stored).entries
        if _find(entries, candidate, protocol):
            return None
        entry = TestSetAccess(number=len(entries) + 1, candidate=candidate, protocol=protocol, run=run, at=now())
        return Ledger(entries=(*entries, entry)).model_dump(mode="json")

    access = _find(_parse(uri, update_json(uri, add)).entries, candidate, protocol)
    assert access is not None
    return access


def read_test_accesses(task_uri: str, test_sha256: str) -> tuple[TestSetAccess, ...]:
    """Return all accesses to the test set, in order."""
    uri = _uri(task_uri, test_sha256)
    return _parse(uri, read_bytes(uri)).entries if exists(uri) else ()


def num_other_test_sets(task_uri: str, test_sha256: str) -> int:
    """Return the number of test sets of the task with other content."""
    ledgers = list_files(TaskPaths(task_uri).ledgers, missing_ok=True)
    return sum(uri != _uri(task_uri, test_sha256) for uri in ledgers)


def _find(entries: tuple[TestSetAccess, ...], candidate: str, protocol: str) -> TestSetAccess | None:
    return next((entry for entry in entries if (entry.candidate, entry.protocol) == (candidate, protocol)), None)


def _uri(task_uri: str, test_sha256: str) -> str:
    if not re.fullmatch("[0-9a-f]{64}", test_sha256):
        raise ValueError(f"test_sha256 is {test_sha256!r}; give the sha256 of the test rows as 64 hexadecimal digits")
    return TaskPaths(task_uri).ledger(test_sha256)


def _parse(uri: str, content: object) -> Ledger:
    """Parse a ledger from its bytes or its JSON value."""
    try:
        return Ledger.model_validate_json(content) if isinstance(content, bytes) else Ledger.model_validate(content)
    except ValidationError as error:
        raise StorageError(f"{uri} is not a valid test-set ledger: {error}; restore the file from a copy") from None
