"""The test-set ledger on a real S3 server: no access is lost or counted twice, even with concurrent
accesses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tailorbird import storage
from tailorbird.registry.test_set_ledger import (
    TestSetAccess,
    next_access,
    read_test_accesses,
    record_test_access,
    recount_access,
)
from tailorbird.storage.paths import TaskPaths

HASHES = np.random.default_rng(0).integers(2**64, size=700, dtype=np.uint64)


def access(
    task_uri: str, model: str, *, rows: slice = slice(100), run: str = "s3://r"
) -> TestSetAccess:
    return record_test_access(
        task_uri, rows=HASHES[rows], models=["incumbent", model], protocol="q", run=run
    )


def test_each_new_model_is_recorded_as_one_access(bucket: str) -> None:
    task_uri = f"{bucket}/task"
    assert read_test_accesses(task_uri) == ()
    numbers = [
        access(task_uri, name, run=f"s3://r{run}").number for run, name in enumerate("aba", 1)
    ]
    assert numbers == [1, 2, 1]
    entries = read_test_accesses(task_uri)
    assert [(entry.number, entry.models[-1], entry.run) for entry in entries] == [
        (1, "a", "s3://r1"),
        (2, "b", "s3://r2"),
    ]
    paths = TaskPaths(task_uri)
    assert set(storage.list_files(f"{bucket}/_ledger")) == {
        paths.test_set_ledger,
        paths.test_set_order,
        paths.test_rows(entries[0].rows[:16]),
    }
    assert [recount_access(task_uri, access=entry) for entry in entries] == list(entries)


def test_rows_are_counted_across_the_tasks_of_a_registry(bucket: str) -> None:
    accesses = [
        access(f"{bucket}/task", "a"),
        access(f"{bucket}/renamed", "b", rows=slice(99)),
        access(f"{bucket}/renamed", "b", rows=slice(600)),
        access(f"{bucket}/task", "c", rows=slice(600, 700)),
    ]
    assert [(entry.number, entry.num_seen) for entry in accesses] == [
        (1, 0),
        (2, 99),
        (3, 100),
        (1, 0),
    ]
    assert next_access(f"{bucket}/new", rows=HASHES).num_seen == 700


def test_concurrent_accesses_get_different_numbers(bucket: str) -> None:
    gate = threading.Barrier(8)

    def access_one(number: int) -> TestSetAccess:
        gate.wait()
        return access(f"{bucket}/task{number}", f"c{number}", rows=slice(100 + number))

    with ThreadPoolExecutor(8) as pool:
        entries = list(pool.map(access_one, range(8)))
    assert sorted(entry.number for entry in entries) == list(range(1, 9))
    assert [read_test_accesses(f"{bucket}/task{number}") for number in range(8)] == [
        (entry,) for entry in entries
    ]
    assert [
        recount_access(f"{bucket}/task{number}", access=entry)
        for number, entry in enumerate(entries)
    ] == entries


def test_concurrent_accesses_of_the_same_test_are_recorded_once(bucket: str) -> None:
    gate = threading.Barrier(6)

    def access_same(number: int) -> TestSetAccess:
        gate.wait()
        return access(f"{bucket}/task", "same", run=f"s3://r{number}")

    with ThreadPoolExecutor(6) as pool:
        (entry,) = set(pool.map(access_same, range(6)))
    assert (entry.number, read_test_accesses(f"{bucket}/task")) == (1, (entry,))
    assert next_access(f"{bucket}/task", rows=HASHES[:100]).number == 2
