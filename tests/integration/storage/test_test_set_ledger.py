"""The test-set ledger on a real S3 server: each candidate has one number, even with concurrent accesses."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tailorbird import storage
from tailorbird.registry.test_set_ledger import num_other_test_sets, read_test_accesses, record_test_access
from tailorbird.storage import s3
from tailorbird.storage.paths import TaskPaths

SHA = hashlib.sha256(b"test rows").hexdigest()
OTHER = hashlib.sha256(b"other rows").hexdigest()


def access(task_uri: str, candidate: str, *, protocol: str = "q", run: str = "s3://r", sha256: str = SHA) -> int:
    """Record an access and return its number."""
    return record_test_access(task_uri, test_sha256=sha256, candidate=candidate, protocol=protocol, run=run).number


def test_each_new_candidate_is_recorded_as_one_access(bucket: str) -> None:
    task_uri = f"{bucket}/task"
    assert read_test_accesses(task_uri, SHA) == ()
    numbers = [access(task_uri, name, run=f"s3://r{run}") for run, name in enumerate("aba", 1)]
    assert numbers == [1, 2, 1]
    entries = [(entry.number, entry.candidate, entry.run) for entry in read_test_accesses(task_uri, SHA)]
    assert entries == [(1, "a", "s3://r1"), (2, "b", "s3://r2")]
    assert storage.list_files(TaskPaths(task_uri).ledgers) == [TaskPaths(task_uri).ledger(SHA)]


def test_the_same_candidate_with_another_protocol_is_a_new_access(bucket: str) -> None:
    protocols = ("q", "a smaller gain", "q")
    assert [access(f"{bucket}/task", "a", protocol=protocol) for protocol in protocols] == [1, 2, 1]


def test_other_test_rows_and_other_tasks_are_counted_separately(bucket: str) -> None:
    assert access(f"{bucket}/task", "a") == 1
    assert access(f"{bucket}/task", "b", sha256=OTHER) == 1
    assert access(f"{bucket}/other", "b") == 1
    assert len(read_test_accesses(f"{bucket}/task", SHA)) == 1
    assert [num_other_test_sets(f"{bucket}/{name}", SHA) for name in ("task", "other", "none")] == [1, 0, 0]


def test_concurrent_accesses_get_different_numbers(bucket: str) -> None:
    gate = threading.Barrier(8)

    def access_one(number: int) -> int:
        gate.wait()
        return access(f"{bucket}/task", f"c{number}")

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(access_one, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    stored = {entry.candidate: entry.number for entry in read_test_accesses(f"{bucket}/task", SHA)}
    assert stored == {f"c{number}": position for number, position in enumerate(numbers)}


def test_concurrent_accesses_of_the_same_candidate_are_recorded_once(bucket: str) -> None:
    gate = threading.Barrier(6)

    def access_same(number: int) -> int:
        gate.wait()
        return access(f"{bucket}/task", "same", run=f"s3://r{number}")

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(access_same, range(6))) == {1}
    assert len(read_test_accesses(f"{bucket}/task", SHA)) == 1


def test_an_invalid_ledger_raises_an_error_and_is_not_changed(bucket: str) -> None:
    uri = f"{bucket}/task/test_set_ledgers/{SHA}.json"
    storage.write_bytes(uri, b"not JSON")
    with pytest.raises(s3.StorageError, match="is not valid JSON"):
        access(f"{bucket}/task", "a")
    assert storage.read_bytes(uri) == b"not JSON"


def test_a_ledger_of_a_newer_format_is_rejected(bucket: str) -> None:
    storage.write_json(f"{bucket}/task/test_set_ledgers/{SHA}.json", {"format": 2, "entries": []})
    with pytest.raises(s3.StorageError, match="has format 2"):
        read_test_accesses(f"{bucket}/task", SHA)
