"""Behind /v1/batches: the states of batches on S3, and one actor an application that does them, one after the other."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from serving.batch_jobs.scoring import BatchError, is_under, score_batch
from serving.batch_jobs.worker import Batch
from serving.deploy.application import application_name
from serving.http.schemas import BatchJob
from serving.version_checks import require_shipped_code
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import DataError
from tailorbird.storage import s3

NAMESPACE = "tailorbird"
POLL_S = 1.0
RESTARTS = 3
CONFIG_HASH_CHARS = 12

_log = logging.getLogger(__name__)


class BatchNotRunning(Exception):
    """The batch is no longer to run."""


def job_uri(task_uri: str, batch_id: str) -> str:
    """Where a batch's state lies."""
    return f"{task_uri}/batches/{batch_id}.json"


def location_error(uri: str, *, task_uri: str, config: ServingConfig) -> str | None:
    """Why no batch may read or write at a place; None where it may."""
    registry = task_uri.rpartition("/")[0]
    for place, what in ((registry, "registry of models"), (config.request_log, "request log")):
        if place is not None and (is_under(uri, place.rstrip("/")) or is_under(place.rstrip("/"), uri)):
            return f"{uri} meets the {what}, which no batch reads or writes; give another prefix"
    if not any(is_under(uri, prefix) for prefix in config.batch_prefixes):
        return f"{uri} is under none of {', '.join(config.batch_prefixes)} (the recipe's serving.batch_prefixes)"
    return None


def read_job(task_uri: str, batch_id: str) -> tuple[BatchJob, str] | None:
    """A batch's state, and the ETag to change it with; None where there is none."""
    found = storage.read_versioned(job_uri(task_uri, batch_id))
    return None if found is None else (BatchJob.model_validate_json(found[0]), found[1])


def update_job(task_uri: str, batch_id: str, decide: Callable[[BatchJob], dict[str, Any] | None]) -> BatchJob:
    """Changes what `decide` says of the state as it is now, None for nothing; returns the state that stands then."""
    from tailorbird.registry.versions import now

    while True:
        found = read_job(task_uri, batch_id)
        assert found is not None, f"{batch_id} is changed by whoever has read it"
        status, etag = found
        fields = decide(status)
        if fields is None:
            return status
        wanted = status.model_copy(update=fields | {"updated_at": now()})
        with suppress(s3.Conflict):
            storage.write_if_match(job_uri(task_uri, batch_id), wanted.model_dump_json().encode(), etag=etag)
            return wanted


def unfinished_jobs(task_uri: str) -> list[BatchJob]:
    """Batches that wait or were interrupted, the oldest first."""
    if not storage.exists(f"{task_uri}/batches"):
        return []
    found = []
    for uri in storage.list_files(f"{task_uri}/batches"):
        try:
            found.append(BatchJob.model_validate_json(storage.read_bytes(uri)))
        except ValidationError as error:  # of other code, or no batch at all: it must not stop the others
            _log.error("%s is left out: %s", uri, error)
    left = [status for status in found if status.status in ("queued", "running")]
    return sorted(left, key=lambda status: (status.created_at, status.id))


def start_runner(task_uri: str, config: ServingConfig) -> Any:
    """Sees to it that the application's desk is there and works; it survives who asks. `wait_for_runner` takes what is given.

    One by other code or with another section leaves after the batch that it does, and this one goes on from there.
    """
    import ray

    code = ray.get_runtime_context().runtime_env.get("working_dir")
    mark = hashlib.sha256(json.dumps([code, config.model_dump(mode="json")]).encode()).hexdigest()[:CONFIG_HASH_CHARS]
    name = f"batches-{application_name(task_uri)}"
    desk = (
        ray.remote(BatchRunner)
        .options(
            name=f"{name}-{mark}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
        )
        .remote(task_uri, config.model_dump(), running_runners(task_uri) - {f"{name}-{mark}"})
    )
    return desk.work.remote()


def running_runners(task_uri: str) -> set[str]:
    """Names of the application's desks that live: one, but while another takes over."""
    from ray.util import list_named_actors

    ours = re.compile(rf"batches-{re.escape(application_name(task_uri))}(-[0-9a-f]{{{CONFIG_HASH_CHARS}}})?")
    living = [one["name"] for one in list_named_actors(all_namespaces=True) if one["namespace"] == NAMESPACE]
    return {name for name in living if ours.fullmatch(name)}


async def wait_for_runner(working: Any) -> None:
    """Waits until the desk has found nothing left, or is gone; raises what it raised."""
    import ray

    with suppress(ray.exceptions.RayActorError):
        await working


class BatchRunner:
    """Used as a detached Ray actor: what it is to do, and has done, lies on S3 alone.

    `before` are the desks that were there when it was made: it begins when they have left.
    """

    def __init__(self, task_uri: str, config: dict[str, Any], before: set[str]) -> None:
        require_shipped_code()
        self._home = task_uri
        self._section = config
        self._before = before

    def work(self) -> None:
        """Does what waits until nothing does, or another desk was made since, then ends its process."""
        import ray

        known = self._before | {ray.get_runtime_context().get_actor_name()}
        while running_runners(self._home) & self._before:
            time.sleep(POLL_S)
        while (left := unfinished_jobs(self._home)) and not running_runners(self._home) - known:
            self._do(left[0].id)
        ray.actor.exit_actor()

    def _do(self, batch_id: str) -> None:
        """One batch, in a process of its own, which is ended when the batch is cancelled."""
        import ray

        update_job(self._home, batch_id, lambda status: {"status": "running"} if status.status == "queued" else None)
        task = ray.remote(run_job).options(num_cpus=0, max_retries=RESTARTS).remote(self._home, batch_id, self._section)
        try:
            while not ray.wait([task], timeout=POLL_S)[0]:
                found = read_job(self._home, batch_id)
                if found is None or found[0].status != "running":
                    ray.cancel(task, force=True)
        except s3.StorageError:  # whoever takes the batch up again must be the only one
            ray.cancel(task, force=True)
            raise
        error: str | None = "its process failed; the cluster's log says why"
        with suppress(ray.exceptions.RayError):
            error = ray.get(task)
        if error is not None:
            update_job(self._home, batch_id, lambda found: _if_running(found, status="failed", error=error))


def run_job(task_uri: str, batch_id: str, config: dict[str, Any]) -> str | None:
    """Scores a batch and keeps its state; returns why it failed."""
    from tailorbird.registry.versions import RegistryError, read_version

    found = read_job(task_uri, batch_id)
    assert found is not None
    asked = found[0]

    def told(done: int, total: int) -> None:
        status = update_job(task_uri, batch_id, lambda found: _if_running(found, rows_done=done, rows_total=total))
        if status.status != "running":
            raise BatchNotRunning

    batch = Batch(asked.input, asked.output, asked.version_uri, asked.digest, asked.column, asked.id_column)
    serving = ServingConfig.model_validate(config)
    for uri in (batch.input, batch.output):  # a state on S3 may be anybody's, and prefixes may be others by now
        refused = location_error(uri, task_uri=task_uri, config=serving)
        if refused is not None:
            return refused
    try:
        version = read_version(asked.version_uri)
        score_batch(batch, serving, version=version, told=told)
    except BatchNotRunning:
        return None
    except (BatchError, DataError, s3.StorageError, RegistryError) as error:
        if isinstance(error, (BatchError, DataError)) and not storage.is_behind(error):
            return str(error)
        _log.exception("batch %s failed", batch_id)
        return "the store or the registry failed; the cluster's log says how. Ask for the same batch again to go on"
    update_job(task_uri, batch_id, lambda found: _if_running(found, status="completed"))
    return None


def _if_running(found: BatchJob, **fields: Any) -> dict[str, Any] | None:
    """What changes of a batch that still runs; what was cancelled stays so."""
    return fields if found.status == "running" else None
