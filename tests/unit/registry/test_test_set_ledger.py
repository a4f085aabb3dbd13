"""Tests of the test-set ledger. Integration tests cover concurrent accesses on a real S3 server."""

import json

import numpy as np
import pytest

from tailorbird.registry import test_set_ledger
from tailorbird.registry.test_set_ledger import (
    TestSetAccess,
    count_access,
    hash_rows,
    next_access,
    read_test_accesses,
    record_test_access,
    recount_access,
)
from tailorbird.storage import conditional, s3

KEY = "00" * 16


def contents(*numbers: int) -> list[tuple[str, str]]:
    return [(f"row {number}", "ab"[number % 2]) for number in numbers]


def access(
    rows: range = range(100), *, task_uri: str = "s3://models/task", model: str = "a", protocol: str = "q"
) -> TestSetAccess:
    return record_test_access(
        task_uri, contents=contents(*rows), models=["incumbent", model], protocol=protocol, run="s3://r"
    )


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The content of an in-memory storage by URI."""
    objects: dict[str, bytes] = {}

    def write(uri: str, data: bytes, *, etag: str | None = None) -> str:
        assert (etag is None) == (uri not in objects) or "/rows/" in uri
        objects[uri] = data
        return "etag"

    monkeypatch.setattr(conditional, "read_versioned", lambda uri: (objects[uri], "etag") if uri in objects else None)
    monkeypatch.setattr(conditional, "write_if_match", write)
    monkeypatch.setattr(test_set_ledger, "write_bytes", write)
    monkeypatch.setattr(test_set_ledger, "read_bytes", lambda uri: objects[uri])
    monkeypatch.setattr(test_set_ledger, "exists", lambda uri: uri in objects)
    return objects


def numbers(*sets: range) -> list[int]:
    """Return the number of each access to these sets of rows, in order."""
    hashes = [np.array(rows, np.uint64) for rows in sets]
    return [count_access(rows, earlier=hashes[:index])[0] for index, rows in enumerate(hashes)]


@pytest.mark.parametrize(
    ("sets", "expected"),
    [
        ([range(1000)] * 3, [1, 2, 3]),
        ([range(1000), range(999)], [1, 2]),  # one row fewer
        ([range(500), range(1000), range(1500), range(2000)], [1, 2, 3, 4]),  # 500 further rows each time
        ([range(1000), range(1000, 2000), range(2000)], [1, 1, 2]),  # each row was seen once
        ([range(1000), range(950, 1950)], [1, 1]),  # 5% were seen
        ([range(1000), range(949, 1949)], [1, 2]),
        ([range(10), range(9, 19)], [1, 2]),  # one of few rows is more than 5%
    ],
)
def test_an_access_has_the_smallest_number_that_at_most_5_percent_of_its_rows_exceed(
    sets: list[range], expected: list[int]
) -> None:
    assert numbers(*sets) == expected


def test_the_accesses_to_a_sliding_test_set_are_counted_by_its_most_used_rows() -> None:
    sets = [range(start, start + 100) for start in range(0, 1000, 10)]
    assert numbers(*sets)[:4] == [1, 2, 3, 4]
    assert max(numbers(*sets)) == 10


def test_rows_seen_before_are_counted_by_text_and_label() -> None:
    hashes = hash_rows(contents(0, 1, 1, 2, 3), key=KEY)
    relabelled = hash_rows([("row 0", "b"), *contents(1, 2, 3)], key=KEY)
    assert len(hashes) == 4  # equal rows count once
    assert count_access(relabelled, earlier=[hashes]) == (2, 3)
    assert not set(hash_rows(contents(1), key="01" * 16)) & set(hashes)


def test_text_and_label_are_not_mixed_up() -> None:
    pairs = [("ab", "c"), ("a", "bc"), ("abc", "")]
    assert len(hash_rows(pairs, key=KEY)) == 3


def test_a_repeated_test_keeps_its_entry_and_any_change_is_a_further_access(
    stored: dict[str, bytes],
) -> None:
    first = access()
    assert (first.number, first.num_rows, first.num_seen) == (1, 100, 0)
    assert access() == first
    further = [
        access(model="b"),
        access(protocol="a smaller gain"),
        access(range(99)),
        access(model="c", task_uri="s3://models/another-name"),
        access(range(150), model="b"),
    ]
    assert [(entry.number, entry.num_seen) for entry in further] == [(2, 100), (3, 100), (4, 99), (5, 100), (6, 100)]
    assert access(range(1000, 1100)).number == 1
    assert json.loads(stored["s3://models/_ledger/accesses.json"])["format"] == 1


def test_an_access_is_recounted_from_the_ledger(stored: dict[str, bytes]) -> None:
    entries = [access(), access(model="b"), access(range(50, 150))]
    assert list(read_test_accesses("s3://models/other")) == entries
    for entry in entries:
        claimed = entry.model_copy(update={"number": 1, "num_seen": 0, "num_rows": 1})
        assert recount_access("s3://models/task", access=claimed) == entry
    unknown = entries[0].model_copy(update={"models": ("c",)})
    assert recount_access("s3://models/task", access=unknown) is None
    stored[f"s3://models/_ledger/rows/{entries[0].rows}"] = b"\0" * 800
    with pytest.raises(s3.StorageError, match="its sha256 differs from its name"):
        recount_access("s3://models/task", access=entries[2])


@pytest.mark.usefixtures("stored")
def test_the_number_of_the_next_access_is_known_without_recording_it() -> None:
    assert next_access("s3://models/task", contents=contents(*range(100))) == (1, 0)
    access(range(50))
    access(range(100))
    assert next_access("s3://models/task", contents=contents(*range(100))) == (3, 100)
    assert next_access("s3://models/task", contents=contents(*range(100, 200))) == (1, 0)
    assert len(read_test_accesses("s3://models/task")) == 2


def test_rows_are_stored_as_8_bytes_without_their_text(stored: dict[str, bytes]) -> None:
    entry = access(range(1000))
    content = stored[f"s3://models/_ledger/rows/{entry.rows}"]
    assert len(content) == 8_000
    assert not any(b"row" in value for uri, value in stored.items() if "/rows/" in uri)


@pytest.mark.usefixtures("stored")
def test_an_access_without_models_or_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="there are no models"):
        record_test_access("s3://models/task", contents=contents(1), models=[], protocol="q", run="s3://r")
    with pytest.raises(ValueError, match="there are no test rows; give at least one"):
        access(range(0))
    assert read_test_accesses("s3://models/task") == ()


@pytest.mark.usefixtures("stored")
def test_an_access_fails_if_other_writers_change_the_ledger_at_every_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    access()

    def refuse(uri: str, data: bytes, *, etag: str | None) -> str:
        raise s3.PreconditionFailed(f"{uri} {len(data)} {etag}")

    monkeypatch.setattr(conditional, "write_if_match", refuse)
    monkeypatch.setattr(conditional, "LONGEST_WAIT_S", 0)
    with pytest.raises(s3.StorageError, match="changed by other writers during 50 attempts; try again"):
        access(model="b")
