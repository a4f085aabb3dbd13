"""States of batch jobs: submission, updates and cancellation."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from serving.batch_jobs.job_store import in_turn, job_id, submit_job, update_job, update_running_job
from serving.batch_jobs.schema import BatchSpec
from serving.batch_jobs.scoring import new_batch
from serving.http.schemas import BatchJob, RequestError
from tailorbird import storage
from tests.unit.serving.batch_jobs.test_locations import TASK_URI
from tests.unit.serving.batch_jobs.test_scoring import version


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Replace S3 by a dict of JSON objects by URI, and return it."""
    objects: dict[str, Any] = {}

    def update_json(uri: str, change: Callable[[Any], Any]) -> Any:
        changed = change(objects.get(uri))
        if changed is not None:
            objects[uri] = changed
        return objects.get(uri)

    monkeypatch.setattr(storage, "update_json", update_json)
    return objects


def _batch(**fields: Any) -> BatchSpec:
    return new_batch(version(), input="s3://lake/in", output="s3://lake/out", **fields)


@pytest.mark.usefixtures("stored")
def test_a_repeated_request_returns_the_same_job_and_requeues_an_ended_one() -> None:
    job = submit_job(TASK_URI, _batch(), version(), owner="app")
    assert (job.id, job.status, job.column) == (job_id(_batch(), owner="app"), "queued", "text")
    assert job.owner == "app"
    assert submit_job(TASK_URI, _batch(), version(), owner="app") == job
    failed = update_job(TASK_URI, job.id, lambda job: job.model_copy(update={"status": "failed", "error": "why"}))
    assert (failed.status, failed.error) == ("failed", "why")
    again = submit_job(TASK_URI, _batch(), version(), owner="app")
    assert (again.status, again.error, again.created_at) == ("queued", None, job.created_at)


@pytest.mark.usefixtures("stored")
def test_keys_have_jobs_of_their_own_even_for_the_same_batch() -> None:
    jobs = [submit_job(TASK_URI, _batch(), version(), owner=owner) for owner in ("app", "other", None)]
    assert len({job.id for job in jobs}) == 3
    cancelled = update_job(TASK_URI, jobs[0].id, lambda job: job.model_copy(update={"status": "cancelled"}))
    assert submit_job(TASK_URI, _batch(), version(), owner="other") == jobs[1] != cancelled


@pytest.mark.usefixtures("stored")
def test_the_same_batch_with_other_columns_is_refused() -> None:
    submit_job(TASK_URI, _batch(), version(), owner="app")
    with pytest.raises(RequestError) as caught:
        submit_job(TASK_URI, _batch(id_column="key"), version(), owner="app")
    assert (caught.value.status, caught.value.type) == (409, "other_columns")


@pytest.mark.usefixtures("stored")
def test_only_a_running_job_is_updated() -> None:
    job = submit_job(TASK_URI, _batch(), version(), owner="app")
    assert update_running_job(TASK_URI, job.id, rows_done=5).rows_done == 0
    update_job(TASK_URI, job.id, lambda job: job.model_copy(update={"status": "running"}))
    assert update_running_job(TASK_URI, job.id, rows_done=5).rows_done == 5
    update_job(TASK_URI, job.id, lambda job: job.model_copy(update={"status": "cancelled"}))
    assert update_running_job(TASK_URI, job.id, status="completed").status == "cancelled"


def test_a_state_of_a_newer_format_is_refused(stored: dict[str, Any]) -> None:
    job = submit_job(TASK_URI, _batch(), version(), owner="app")
    (state,) = stored.values()
    assert state["format"] == 1
    with pytest.raises(ValidationError, match="format"):
        BatchJob.model_validate(job.model_dump() | {"format": 2})


@pytest.mark.usefixtures("stored")
def test_owners_take_turns_however_many_jobs_each_has() -> None:
    submitted = submit_job(TASK_URI, _batch(), version(), owner="many")

    def job(id: str, owner: str, status: str, *, created: int, updated: int | None = None) -> BatchJob:
        fields = {"id": id, "owner": owner, "status": status, "created_at": f"2026-03-0{created}"}
        return submitted.model_copy(update=fields | {"updated_at": f"2026-03-0{updated or created}"})

    many = [job(f"many{day}", "many", "queued", created=day) for day in (1, 2, 3)]
    few = job("few", "few", "queued", created=4)
    assert in_turn([*many, few]) == [*many, few]
    many[0] = job("many1", "many", "completed", created=1, updated=5)
    assert in_turn([*many, few]) == [few, *many[1:]]
    again = job("many1", "many", "queued", created=1, updated=6)  # submitted again
    assert in_turn([again, few]) == [few, again]
    running = job("many2", "many", "running", created=2, updated=5)
    assert in_turn([few, running]) == [running, few]
