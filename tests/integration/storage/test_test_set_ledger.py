"""The ledger of looks on a real S3 server: each candidate one number, whoever else looks at that moment."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tailorbird import storage
from tailorbird.registry.test_set_ledger import look, num_other_sets, read_looks
from tailorbird.storage import s3

SHA = hashlib.sha256(b"test rows").hexdigest()
OTHER = hashlib.sha256(b"other rows").hexdigest()


def test_each_new_candidate_is_a_look_and_the_same_candidate_is_none(bucket: str) -> None:
    task_uri = f"{bucket}/task"
    assert read_looks(task_uri, SHA) == []
    assert look(task_uri, test_sha256=SHA, candidate="a", question="q", run="s3://r1").look == 1
    assert look(task_uri, test_sha256=SHA, candidate="b", question="q", run="s3://r2").look == 2
    assert look(task_uri, test_sha256=SHA, candidate="a", question="q", run="s3://r3").look == 1
    told = [(entry.look, entry.candidate, entry.run) for entry in read_looks(task_uri, SHA)]
    assert told == [(1, "a", "s3://r1"), (2, "b", "s3://r2")]
    assert storage.list_files(f"{task_uri}/looks") == [f"{task_uri}/looks/{SHA}.json"]


def test_the_same_candidate_asked_another_question_is_a_new_look(bucket: str) -> None:
    task_uri = f"{bucket}/task"
    assert look(task_uri, test_sha256=SHA, candidate="a", question="q", run="s3://r1").look == 1
    assert look(task_uri, test_sha256=SHA, candidate="a", question="a smaller gain", run="s3://r2").look == 2
    assert look(task_uri, test_sha256=SHA, candidate="a", question="q", run="s3://r1").look == 1


def test_other_test_rows_and_other_tasks_are_counted_apart(bucket: str) -> None:
    assert look(f"{bucket}/task", test_sha256=SHA, candidate="a", question="q", run="s3://r").look == 1
    assert look(f"{bucket}/task", test_sha256=OTHER, candidate="b", question="q", run="s3://r").look == 1
    assert look(f"{bucket}/other", test_sha256=SHA, candidate="b", question="q", run="s3://r").look == 1
    assert len(read_looks(f"{bucket}/task", SHA)) == 1
    assert [num_other_sets(f"{bucket}/{name}", SHA) for name in ("task", "other", "none")] == [1, 0, 0]


def test_of_looks_at_once_no_two_get_the_same_number(bucket: str) -> None:
    gate = threading.Barrier(8)

    def one(number: int) -> int:
        gate.wait()
        return look(f"{bucket}/task", test_sha256=SHA, candidate=f"c{number}", question="q", run=f"s3://r{number}").look

    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(one, range(8)))
    assert sorted(numbers) == list(range(1, 9))
    kept = {entry.candidate: entry.look for entry in read_looks(f"{bucket}/task", SHA)}
    assert kept == {f"c{number}": given for number, given in enumerate(numbers)}


def test_the_same_candidate_by_many_at_once_is_one_look(bucket: str) -> None:
    gate = threading.Barrier(6)

    def one(number: int) -> int:
        gate.wait()
        return look(f"{bucket}/task", test_sha256=SHA, candidate="same", question="q", run=f"s3://r{number}").look

    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(one, range(6))) == {1}
    assert len(read_looks(f"{bucket}/task", SHA)) == 1


def test_a_broken_ledger_is_an_error_and_stays_as_it_is(bucket: str) -> None:
    uri = f"{bucket}/task/looks/{SHA}.json"
    storage.write_bytes(uri, b"not JSON")
    with pytest.raises(s3.StorageError, match="is no ledger of looks"):
        look(f"{bucket}/task", test_sha256=SHA, candidate="a", question="q", run="s3://r")
    assert storage.read_bytes(uri) == b"not JSON"
