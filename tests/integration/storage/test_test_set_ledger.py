"""The test-set ledger on a real S3 server: no access is lost or counted twice, even with concurrent
accesses."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from tailorbird.registry.test_set_ledger import (
    TestSetAccess,
    next_access,
    read_test_accesses,
    record_test_access,
    recount_access,
)

HASHES = np.random.default_rng(0).integers(2**64, size=700, dtype=np.uint64)


def access(
    task_uri: str, model: str, *, rows: slice = slice(100), run: str = "s3://r"
) -> TestSetAccess:
    return record_test_access(
        task_uri, rows=HASHES[rows], models=["incumbent", model], protocol="q", run=run
    )


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
