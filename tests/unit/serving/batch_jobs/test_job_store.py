"""States of batch jobs: submission, updates, cancellation and turns."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serving.batch_jobs import job_store
from serving.batch_jobs.job_store import (
    in_turn,
    job_id,
    read_job,
    submit_job,
    unfinished_jobs,
    update_job,
    update_running_job,
)
from serving.batch_jobs.schema import BatchSpec
from serving.batch_jobs.scoring import new_batch
from serving.http.schemas import BatchJob, RequestError
from tailorbird import storage
from tailorbird.storage.paths import TaskPaths
from tests.unit.serving.batch_jobs.test_scoring import version


@pytest.fixture
def task_uri(tmp_path: Path) -> str:
    return f"{tmp_path.as_uri()}/task"


def _batch(**fields: Any) -> BatchSpec:
    return new_batch(version(), **({"input": "s3://lake/in", "output": "s3://lake/out"} | fields))


def test_a_repeated_request_returns_the_same_job_and_requeues_an_ended_one(task_uri: str) -> None:
    job = submit_job(task_uri, _batch(), version(), owner="app")
    assert (job.id, job.status, job.column) == (job_id(_batch(), owner="app"), "queued", "text")
    assert job.owner == "app"
    assert submit_job(task_uri, _batch(), version(), owner="app") == job
    failed = update_job(
        task_uri, job.id, lambda job: job.model_copy(update={"status": "failed", "error": "why"})
    )
    assert (failed.status, failed.error) == ("failed", "why")
    again = submit_job(task_uri, _batch(), version(), owner="app")
    assert (again.status, again.error, again.created_at) == ("queued", None, job.created_at)


def test_keys_have_jobs_of_their_own_even_for_the_same_batch(task_uri: str) -> None:
    jobs = [
        submit_job(task_uri, _batch(), version(), owner=owner) for owner in ("app", "other", None)
    ]
    assert len({job.id for job in jobs}) == 3
    cancelled = update_job(
        task_uri, jobs[0].id, lambda job: job.model_copy(update={"status": "cancelled"})
    )
    assert submit_job(task_uri, _batch(), version(), owner="other") == jobs[1] != cancelled


def test_the_same_batch_with_other_columns_is_refused(task_uri: str) -> None:
    submit_job(task_uri, _batch(), version(), owner="app")
    with pytest.raises(RequestError) as caught:
        submit_job(task_uri, _batch(id_column="key"), version(), owner="app")
    assert (caught.value.status, caught.value.type) == (409, "other_columns")


def test_only_a_running_job_is_updated(task_uri: str) -> None:
    job = submit_job(task_uri, _batch(), version(), owner="app")
    assert update_running_job(task_uri, job.id, rows_done=5).rows_done == 0
    update_job(task_uri, job.id, lambda job: job.model_copy(update={"status": "running"}))
    assert update_running_job(task_uri, job.id, rows_done=5).rows_done == 5
    update_job(task_uri, job.id, lambda job: job.model_copy(update={"status": "cancelled"}))
    assert update_running_job(task_uri, job.id, status="completed").status == "cancelled"


def test_a_state_of_a_newer_format_is_refused(task_uri: str) -> None:
    job = submit_job(task_uri, _batch(), version(), owner="app")
    assert storage.read_json(TaskPaths(task_uri).batch(job.id))["format"] == 1
    with pytest.raises(ValidationError):
        BatchJob.model_validate(job.model_dump() | {"format": 2})


def _submitted(task_uri: str, output: str, *, owner: str = "app") -> BatchJob:
    return submit_job(task_uri, _batch(output=f"s3://lake/{output}"), version(), owner=owner)


def _ended(task_uri: str, job: BatchJob) -> BatchJob:
    return update_job(task_uri, job.id, lambda job: job.model_copy(update={"status": "cancelled"}))


def _unfinished(task_uri: str) -> set[str]:
    return {job.output.removeprefix("s3://lake/") for job in unfinished_jobs(task_uri)}


def test_only_the_states_of_unfinished_jobs_are_read(
    task_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [_submitted(task_uri, f"out-{number}") for number in range(6)]
    for job in jobs[:4]:
        _ended(task_uri, job)
    assert _unfinished(task_uri) == {"out-4", "out-5"}
    read: list[str] = []

    def counted(task_uri: str, batch_id: str) -> BatchJob | None:
        read.append(batch_id)
        return read_job(task_uri, batch_id)

    monkeypatch.setattr(job_store, "read_job", counted)
    assert _unfinished(task_uri) == {"out-4", "out-5"}
    assert sorted(read) == sorted(job.id for job in jobs[4:])
    ended = read_job(task_uri, jobs[0].id)
    assert ended is not None
    assert ended.status == "cancelled"


def test_a_job_that_is_submitted_again_while_its_marker_is_deleted_is_not_lost(
    task_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _ended(task_uri, _submitted(task_uri, "out"))
    delete, read = storage.delete, list[str]()

    def slow_delete(uri: str) -> None:
        read.append(uri)
        if len(read) == 1:  # the job's state has been read
            _submitted(task_uri, "out")
        delete(uri)

    monkeypatch.setattr(storage, "delete", slow_delete)
    unfinished_jobs(task_uri)
    assert read
    assert _unfinished(task_uri) == {"out"}


def test_a_repeated_request_restores_the_marker_of_a_submission_that_was_interrupted(
    task_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", None)
        with pytest.raises(TypeError):
            _submitted(task_uri, "out")
    assert _unfinished(task_uri) == set()
    for _ in range(3):
        _submitted(task_uri, "out")
    assert _unfinished(task_uri) == {"out"}
    assert len(storage.list_files(TaskPaths(task_uri).unfinished_batches)) == 1


def test_an_owner_has_a_limited_number_of_unfinished_jobs(
    task_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_store, "MAX_UNFINISHED", 2)
    first, second = (_submitted(task_uri, output) for output in ("a", "b"))
    with pytest.raises(RequestError) as caught:
        _submitted(task_uri, "c")
    assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "60"})
    assert _submitted(task_uri, "a") == first
    assert _submitted(task_uri, "c", owner="other").status == "queued"
    _ended(task_uri, second)
    assert _submitted(task_uri, "c").status == "queued"
    with pytest.raises(RequestError):
        _submitted(task_uri, "b")


def test_a_state_that_is_not_valid_does_not_block_other_jobs(task_uri: str) -> None:
    damaged, _ = (_submitted(task_uri, output) for output in ("a", "b"))
    storage.write_bytes(TaskPaths(task_uri).batch(damaged.id), b"{}")
    assert _unfinished(task_uri) == {"b"}


def test_owners_take_turns_however_many_jobs_each_has(task_uri: str) -> None:
    submitted = _submitted(task_uri, "out")

    def job(id: str, owner: str, status: str, *, day: int) -> BatchJob:
        return submitted.model_copy(
            update={"id": id, "owner": owner, "status": status, "created_at": f"2026-03-0{day}"}
        )

    many = [job(f"many{day}", "many", "queued", day=day) for day in (1, 2, 3)]
    few, new = job("few", "few", "queued", day=4), job("new", "new", "queued", day=5)
    assert in_turn([few, *reversed(many)], turns={}) == [*many, few]
    assert in_turn([*many, few], turns={"many": 0}) == [few, *many]
    assert in_turn([*many, few, new], turns={"many": 0, "few": 1}) == [new, *many, few]
    assert in_turn([*many, few], turns={"few": 1, "many": 2}) == [few, *many]
    running = job("many0", "many", "running", day=6)
    assert in_turn([few, running], turns={"many": 0}) == [running, few]
