"""States of batch jobs on S3: one JSON object per job, updated by compare-and-swap.

Each submission also writes a marker, an object whose name contains the job's id, after the job's
state. So a marker of a job that has ended can be deleted, and only the states of unfinished jobs
are read.
"""

import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from serving.batch_jobs.schema import BatchSpec
from serving.http.schemas import BatchJob, RequestError
from tailorbird import storage
from tailorbird.storage.paths import TaskPaths

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

ID_CHARS = 24
MAX_UNFINISHED = 100
"""Maximum number of unfinished jobs of an owner."""
RETRY_AFTER_S = 60
THREADS = 16  # objects that are read or deleted at the same time

_log = logging.getLogger(__name__)


def job_id(batch: BatchSpec, *, owner: str | None) -> str:
    """Return the job's id, a hash of the batch and the owner."""
    key = json.dumps([batch.model_dump(), owner])
    return hashlib.sha256(key.encode()).hexdigest()[:ID_CHARS]


def read_job(task_uri: str, batch_id: str) -> BatchJob | None:
    """Return a job's state, or None if the job does not exist."""
    stored = storage.read_versioned(TaskPaths(task_uri).batch(batch_id))
    if stored is None:
        return None
    return BatchJob.model_validate_json(stored[0])


def update_job(
    task_uri: str, batch_id: str, change: Callable[[BatchJob], BatchJob | None]
) -> BatchJob:
    """Replace a job's state with the result of `change`, or keep it if that is None. Return the
    stored state."""
    from tailorbird.registry.versions import now

    def changed(stored: Any) -> Any:
        assert stored is not None, f"no job {batch_id}; read it before changing it"
        job = change(BatchJob.model_validate(stored))
        if job is None:
            return None
        return job.model_copy(update={"updated_at": now()}).model_dump(mode="json")

    return BatchJob.model_validate(
        storage.update_json(TaskPaths(task_uri).batch(batch_id), changed)
    )


def update_running_job(task_uri: str, batch_id: str, **fields: object) -> BatchJob:
    """Set fields of a job if its status is still `running`. Return the stored state."""
    return update_job(
        task_uri,
        batch_id,
        lambda job: job.model_copy(update=fields) if job.status == "running" else None,
    )


def submit_job(
    task_uri: str, batch: BatchSpec, version: "ModelVersion", *, owner: str | None
) -> BatchJob:
    """Queue a job, or return the owner's existing job if it is unfinished. A job that has ended is
    queued again.

    Raises RequestError 429 if the owner has `MAX_UNFINISHED` others.
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

    folder = _marker_folder(task_uri, owner=owner)
    unfinished = {other.id for other in _jobs_with_markers(task_uri, folder=folder)}
    if job.id not in unfinished and len(unfinished) >= MAX_UNFINISHED:
        message = (
            f"{MAX_UNFINISHED} batches of this key are queued or running; wait until one has "
            "ended, or cancel one"
        )
        raise RequestError(
            429,
            "too_many_batches",
            message,
            code="rate_limit_exceeded",
            headers={"retry-after": str(RETRY_AFTER_S)},
        )
    needs_marker = True

    def queued(stored: Any) -> Any:
        nonlocal needs_marker
        needs_marker = True
        if stored is None:
            return job.model_dump(mode="json")
        current = BatchJob.model_validate(stored)
        if current.is_unfinished:
            needs_marker = job.id not in unfinished
            return None
        update = {"status": "queued", "error": None, "updated_at": now()}
        return current.model_copy(update=update).model_dump(mode="json")

    submitted = BatchJob.model_validate(
        storage.update_json(TaskPaths(task_uri).batch(job.id), queued)
    )
    if needs_marker:
        storage.write_bytes(f"{folder}/{job.id}-{secrets.token_hex(8)}", b"{}")
    return submitted


def unfinished_jobs(task_uri: str) -> list[BatchJob]:
    """Return the jobs that are queued or running. The markers of jobs that have ended are
    deleted."""
    return _jobs_with_markers(task_uri, folder=TaskPaths(task_uri).unfinished_batches)


def _marker_folder(task_uri: str, *, owner: str | None) -> str:
    name = hashlib.sha256(json.dumps(owner).encode()).hexdigest()[:ID_CHARS]
    return f"{TaskPaths(task_uri).unfinished_batches}/{name}"


def _jobs_with_markers(task_uri: str, *, folder: str) -> list[BatchJob]:
    markers: dict[str, list[str]] = {}
    for uri in storage.list_files(folder, missing_ok=True):
        markers.setdefault(uri.rpartition("/")[2].partition("-")[0], []).append(uri)
    with ThreadPoolExecutor(THREADS) as pool:
        jobs = dict(
            zip(markers, pool.map(partial(_read_valid_job, task_uri), markers), strict=True)
        )
        ended = [
            uri for id, job in jobs.items() if job and not job.is_unfinished for uri in markers[id]
        ]
        for _ in pool.map(storage.delete, ended):
            pass
    return [job for job in jobs.values() if job and job.is_unfinished]


def _read_valid_job(task_uri: str, batch_id: str) -> BatchJob | None:
    try:
        return read_job(task_uri, batch_id)
    except ValidationError as error:
        # A file of another format or code must not block the other jobs.
        _log.error("batch job %s is skipped because its state is not valid: %s", batch_id, error)
        return None


def in_turn(jobs: Sequence[BatchJob], *, turns: Mapping[str | None, int]) -> list[BatchJob]:
    """Return the jobs: running ones, then those of the owner whose turn was longest ago, then the
    oldest.

    `turns` are the numbers of the owners' last turns. So an owner with many jobs does not delay
    those of others by more than one job.
    """

    def turn(job: BatchJob) -> tuple[bool, int, str, str]:
        return job.status != "running", turns.get(job.owner, -1), job.created_at, job.id

    return sorted(jobs, key=turn)
