"""States of batch jobs on S3: one JSON object per job, updated by compare-and-swap."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from serving.batch_jobs.schema import BatchSpec
from serving.http.schemas import BatchJob, RequestError
from tailorbird import storage
from tailorbird.storage.paths import TaskPaths

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

ID_CHARS = 24

_log = logging.getLogger(__name__)


def job_id(batch: BatchSpec, *, owner: str | None) -> str:
    """Return the job's id, a hash of the input, the output, the version and the owner."""
    key = json.dumps([batch.input, batch.output, batch.digest, owner])
    return hashlib.sha256(key.encode()).hexdigest()[:ID_CHARS]


def read_job(task_uri: str, batch_id: str) -> BatchJob | None:
    """Return a job's state, or None if the job does not exist."""
    stored = storage.read_versioned(TaskPaths(task_uri).batch(batch_id))
    return None if stored is None else BatchJob.model_validate_json(stored[0])


def update_job(task_uri: str, batch_id: str, change: Callable[[BatchJob], BatchJob | None]) -> BatchJob:
    """Replace a job's state with the result of `change`, or keep it if that is None. Return the stored state."""
    from tailorbird.registry.versions import now

    def changed(stored: Any) -> Any:
        assert stored is not None, f"no job {batch_id}; read it before changing it"
        job = change(BatchJob.model_validate(stored))
        return None if job is None else job.model_copy(update={"updated_at": now()}).model_dump(mode="json")

    return BatchJob.model_validate(storage.update_json(TaskPaths(task_uri).batch(batch_id), changed))


def update_running_job(task_uri: str, batch_id: str, **fields: object) -> BatchJob:
    """Set fields of a job if its status is still `running`. Return the stored state."""
    return update_job(
        task_uri, batch_id, lambda job: job.model_copy(update=fields) if job.status == "running" else None
    )


def submit_job(task_uri: str, batch: BatchSpec, version: "ModelVersion", *, owner: str | None) -> BatchJob:
    """Queue a job, or return the owner's existing job if it is unfinished. A job that has ended is queued again.

    Raises RequestError 409 if the existing job reads other columns.
    """
    from tailorbird.registry.versions import now

    created_at = now()
    job = BatchJob(
        **batch.model_dump(),
        id=job_id(batch, owner=owner),
        owner=owner,
        status="queued",
        model=version.name,
        version=version.version,
        created_at=created_at,
        updated_at=created_at,
    )

    def queued(stored: Any) -> Any:
        if stored is None:
            return job.model_dump(mode="json")
        current = BatchJob.model_validate(stored)
        column, id_column = current.column, current.id_column
        if (column, id_column) != (batch.column, batch.id_column):
            message = (
                f"batch {job.id} reads column {column!r} and id column {id_column!r}; "
                "give the same columns, or another output"
            )
            raise RequestError(409, "other_columns", message, param="column")
        if current.is_unfinished:
            return None
        update = {"status": "queued", "error": None, "updated_at": now()}
        return current.model_copy(update=update).model_dump(mode="json")

    return BatchJob.model_validate(storage.update_json(TaskPaths(task_uri).batch(job.id), queued))


def unfinished_jobs(task_uri: str) -> list[BatchJob]:
    """Return the jobs that are queued or running, in the order in which they should run; see `in_turn`."""
    jobs = []
    for uri in storage.list_files(TaskPaths(task_uri).batches, missing_ok=True):
        try:
            jobs.append(BatchJob.model_validate_json(storage.read_bytes(uri)))
        except ValidationError as error:  # a file of another format or code must not block the other jobs
            _log.error("batch job %s is skipped because its state is not valid: %s", uri, error)
    return in_turn(jobs)


def in_turn(jobs: Sequence[BatchJob]) -> list[BatchJob]:
    """Return the unfinished jobs: running ones, then those of the owner whose turn was longest ago, then the oldest.

    So an owner with many jobs does not delay those of others by more than one job.
    """
    last_turns: dict[str | None, str] = {}
    for job in jobs:
        if job.updated_at > job.created_at:
            last_turns[job.owner] = max(last_turns.get(job.owner, ""), job.updated_at)

    def turn(job: BatchJob) -> tuple[bool, str, str, str]:
        return job.status != "running", last_turns.get(job.owner, ""), job.created_at, job.id

    return sorted((job for job in jobs if job.is_unfinished), key=turn)
