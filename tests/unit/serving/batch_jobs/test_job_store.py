"""States of batch jobs: submission, updates, cancellation and turns."""

from pathlib import Path
from typing import Any

import pytest

from serving.batch_jobs import job_store
from serving.batch_jobs.job_store import (
    job_id,
    read_job,
    submit_job,
    unfinished_jobs,
    update_job,
    update_running_job,
)
from serving.batch_jobs.scoring import new_batch
from serving.http.schemas import BatchJob, RequestError
from tailorbird import storage
from tailorbird.storage.paths import TaskPaths
from tests.build import version


class Store:
    """The jobs of a task with the version `version()`."""

    def __init__(self, folder: Path) -> None:
        self.task_uri = f"{folder.as_uri()}/task"

    def submit(self, output: str = "out", *, owner: str | None = "app", **fields: Any) -> BatchJob:
        batch = new_batch(version(), input="s3://lake/in", output=f"s3://lake/{output}", **fields)
        job = submit_job(self.task_uri, batch, version(), owner=owner)
        assert job.id == job_id(batch, owner=owner)
        return job

    def update(self, job: BatchJob, **fields: Any) -> BatchJob:
        return update_job(self.task_uri, job.id, lambda job: job.model_copy(update=fields))

    def unfinished(self) -> set[str]:
        """Return the names of the outputs of unfinished jobs."""
        jobs = unfinished_jobs(self.task_uri)
        return {job.output.removeprefix("s3://lake/") for job in jobs}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def test_only_a_running_job_is_updated(store: Store) -> None:
    job = store.submit()
    for status, rows_done, stored in (("queued", 5, 0), ("running", 5, 5), ("cancelled", 6, 5)):
        store.update(job, status=status)
        updated = update_running_job(store.task_uri, job.id, rows_done=rows_done)
        assert (updated.status, updated.rows_done) == (status, stored)


def test_only_the_states_of_unfinished_jobs_are_read_and_a_damaged_one_blocks_no_other(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [store.submit(f"out-{number}") for number in range(4)]
    store.update(jobs[0], status="cancelled")
    assert store.unfinished() == {"out-1", "out-2", "out-3"}
    read: list[str] = []

    def counted(task_uri: str, batch_id: str) -> BatchJob | None:
        read.append(batch_id)
        return read_job(task_uri, batch_id)

    monkeypatch.setattr(job_store, "read_job", counted)
    storage.write_bytes(TaskPaths(store.task_uri).batch(jobs[1].id), b"{}")
    assert store.unfinished() == {"out-2", "out-3"}
    assert sorted(read) == sorted(job.id for job in jobs[1:])


def test_a_job_that_is_submitted_again_while_its_marker_is_deleted_is_not_lost(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.update(store.submit(), status="cancelled")
    delete = storage.delete
    deleted = list[str]()

    def slow_delete(uri: str) -> None:
        deleted.append(uri)
        if len(deleted) == 1:  # the job's state has been read
            store.submit()
        delete(uri)

    monkeypatch.setattr(storage, "delete", slow_delete)
    unfinished_jobs(store.task_uri)
    assert deleted
    assert store.unfinished() == {"out"}


def test_a_repeated_request_restores_the_marker_of_a_submission_that_was_interrupted(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_bytes", None)
        with pytest.raises(TypeError):
            store.submit()
    assert store.unfinished() == set()
    for _ in range(3):
        store.submit()
    assert store.unfinished() == {"out"}
    assert len(storage.list_files(TaskPaths(store.task_uri).unfinished_batches)) == 1


def test_keys_have_jobs_of_their_own_even_for_the_same_batch_and_few_unfinished_ones(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_store, "MAX_UNFINISHED", 2)
    first = store.submit("a")
    second = store.submit("b")
    with pytest.raises(RequestError) as caught:
        store.submit("c")
    assert (caught.value.status, caught.value.headers) == (429, {"retry-after": "60"})
    assert store.submit("a") == first
    others = {store.submit("c", owner=owner).id for owner in ("other", None)}
    store.update(second, status="cancelled")
    assert len({store.submit("c").id, *others}) == 3
    with pytest.raises(RequestError):
        store.submit("b")
