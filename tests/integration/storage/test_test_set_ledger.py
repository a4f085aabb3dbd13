"""The test-set ledger on a real S3 server: no access is lost or counted twice, even with concurrent accesses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tailorbird import storage
from tailorbird.registry.test_set_ledger import TestSetAccess, read_test_accesses, record_test_access, recount_access
from tailorbird.storage import s3
from tailorbird.storage.paths import TaskPaths


def access(task_uri: str, model: str, *, rows: range = range(100), run: str = "s3://r") -> TestSetAccess:
    contents = [(f"row {number}", "label") for number in rows]
    return record_test_access(task_uri, contents=contents, models=["incumbent", model], protocol="q", run=run)


def test_each_new_model_is_recorded_as_one_access(bucket: str) -> None:
    task_uri = f"{bucket}/task"
    assert read_test_accesses(task_uri) == ()
    numbers = [access(task_uri, name, run=f"s3://r{run}").number for run, name in enumerate("aba", 1)]
    assert numbers == [1, 2, 1]
    entries = read_test_accesses(task_uri)
    assert [(entry.number, entry.models[-1], entry.run) for entry in entries] == [
        (1, "a", "s3://r1"),
        (2, "b", "s3://r2"),
    ]
    paths = TaskPaths(task_uri)
    assert set(storage.list_files(f"{bucket}/_ledger")) == {paths.test_set_ledger, paths.test_set_rows(entries[0].rows)}
    assert [recount_access(task_uri, access=entry) for entry in entries] == list(entries)


def test_rows_are_counted_across_the_tasks_of_a_registry(bucket: str) -> None:
    accesses = [
        access(f"{bucket}/task", "a"),
        access(f"{bucket}/renamed", "b", rows=range(99)),
        access(f"{bucket}/renamed", "b", rows=range(600)),
        access(f"{bucket}/task", "c", rows=range(600, 700)),
    ]
    assert [(entry.number, entry.num_seen) for entry in accesses] == [(1, 0), (2, 99), (3, 100), (1, 0)]


def test_concurrent_accesses_get_different_numbers(bucket: str) -> None:
    gate = threading.Barrier(8)

    def access_one(number: int) -> int:
        gate.wait()
        return access(f"{bucket}/task{number}", f"c{number}").number

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(access_one, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    stored = {entry.models[-1]: entry.number for entry in read_test_accesses(f"{bucket}/task")}
    assert stored == {f"c{number}": position for number, position in enumerate(numbers)}


def test_concurrent_accesses_of_the_same_test_are_recorded_once(bucket: str) -> None:
    gate = threading.Barrier(6)

    def access_same(number: int) -> int:
        gate.wait()
        return access(f"{bucket}/task", "same", run=f"s3://r{number}").number

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(access_same, range(6))) == {1}
    assert len(read_test_accesses(f"{bucket}/task")) == 1


def test_an_invalid_ledger_raises_an_error_and_is_not_changed(bucket: str) -> None:
    uri = TaskPaths(f"{bucket}/task").test_set_ledger
    storage.write_bytes(uri, b"not JSON")
    with pytest.raises(s3.StorageError, match="is not valid JSON"):
        access(f"{bucket}/task", "a")
    assert storage.read_bytes(uri) == b"not JSON"


def test_a_ledger_of_a_newer_format_is_rejected(bucket: str) -> None:
    storage.write_json(TaskPaths(f"{bucket}/task").test_set_ledger, {"format": 2, "key": "00", "entries": []})
    with pytest.raises(s3.StorageError, match="has format 2"):
        read_test_accesses(f"{bucket}/task")
