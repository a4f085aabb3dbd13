"""The runner of an application's batch jobs: a detached Ray actor that runs one job at a time."""

import hashlib
import json
import logging
import re
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from serving.batch_jobs.job_store import (
    in_turn,
    read_job,
    unfinished_jobs,
    update_job,
    update_running_job,
)
from serving.batch_jobs.locations import location_error
from serving.batch_jobs.schema import BatchError, BatchSpec
from serving.batch_jobs.scoring import score_batch
from serving.deploy.application import application_name
from serving.version_checks import require_shipped_code
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import DataError
from tailorbird.storage import s3

if TYPE_CHECKING:
    from ray import ObjectRef

NAMESPACE = "tailorbird"
POLL_S = 1.0
RESTARTS = 3
CONFIG_HASH_CHARS = 12

_log = logging.getLogger(__name__)


class BatchNotRunning(Exception):
    """A job that is no longer running, because it was cancelled."""


def start_runner(task_uri: str, config: ServingConfig) -> "ObjectRef[None]":
    """Create the application's runner if it does not exist, start its work, and return the call for
    `wait_for_runner`.

    The runner outlives the process that starts it. A runner with other code or another config ends
    after its current job, and the new runner continues with the next job.
    """
    import ray

    code = ray.get_runtime_context().runtime_env.get("working_dir")
    key = json.dumps([code, config.model_dump(mode="json")])
    config_hash = hashlib.sha256(key.encode()).hexdigest()[:CONFIG_HASH_CHARS]
    name = f"batches-{application_name(task_uri)}-{config_hash}"
    restarts = {"max_restarts": RESTARTS, "max_task_retries": RESTARTS}
    detached = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    actor = ray.remote(BatchRunner).options(num_cpus=0, **restarts, **detached)
    runner = actor.remote(task_uri, config, running_runners(task_uri) - {name})
    call: ObjectRef[None] = runner.work.remote()
    return call


def running_runners(task_uri: str) -> set[str]:
    """Return the names of the application's live runners: one, or more while a new runner replaces
    an old one."""
    from ray.util import list_named_actors

    pattern = re.compile(
        rf"batches-{re.escape(application_name(task_uri))}-[0-9a-f]{{{CONFIG_HASH_CHARS}}}"
    )
    actors = list_named_actors(all_namespaces=True)
    names = {actor["name"] for actor in actors if actor["namespace"] == NAMESPACE}
    return {name for name in names if pattern.fullmatch(name)}


async def wait_for_runner(call: "ObjectRef[None]") -> None:
    """Wait until the runner has no jobs left or its process has ended. Errors of the runner are
    raised."""
    import ray

    with suppress(ray.exceptions.RayActorError):
        await call


class BatchRunner:
    """The class of the detached Ray actor. All its state is on S3.

    `predecessors` are the runners that existed at its creation. It starts its work after they have
    ended.
    """

    def __init__(self, task_uri: str, config: ServingConfig, predecessors: set[str]) -> None:
        require_shipped_code()
        self._task_uri = task_uri
        self._config = config
        self._predecessors = predecessors

    def work(self) -> None:
        """Run unfinished jobs until none is left or a newer runner exists, then end the process."""
        import ray

        known = self._predecessors | {ray.get_runtime_context().get_actor_name()}
        while running_runners(self._task_uri) & self._predecessors:
            time.sleep(POLL_S)
        turns: dict[str | None, int] = {}
        while (jobs := unfinished_jobs(self._task_uri)) and not running_runners(
            self._task_uri
        ) - known:
            job = in_turn(jobs, turns=turns)[0]
            turns[job.owner] = max(turns.values(), default=-1) + 1
            self._run(job.id)
        ray.actor.exit_actor()

    def _run(self, batch_id: str) -> None:
        """Run one job in a separate process, which is killed if the job is cancelled."""
        import ray

        update_job(
            self._task_uri,
            batch_id,
            lambda job: (
                job.model_copy(update={"status": "running"}) if job.status == "queued" else None
            ),
        )
        task = ray.remote(run_job).options(num_cpus=0, max_retries=RESTARTS)
        call = task.remote(self._task_uri, batch_id, self._config)
        try:
            while not ray.wait([call], timeout=POLL_S)[0]:
                job = read_job(self._task_uri, batch_id)
                if job is None or job.status != "running":
                    ray.cancel(call, force=True)
        except s3.StorageError:
            # The job will be run again, and two processes must not run it at once.
            ray.cancel(call, force=True)
            raise
        error: str | None = "the process of the job failed; see the cluster's log"
        with suppress(ray.exceptions.RayError):
            error = ray.get(call)
        if error is not None:
            update_running_job(self._task_uri, batch_id, status="failed", error=error)


def run_job(task_uri: str, batch_id: str, config: ServingConfig) -> str | None:
    """Score a job's batch and update its state. Return the reason of a failure, or None."""
    from tailorbird.registry.versions import RegistryError, read_version

    job = read_job(task_uri, batch_id)
    assert job is not None

    def report(done: int, total: int) -> None:
        updated = update_running_job(task_uri, batch_id, rows_done=done, rows_total=total)
        if updated.status != "running":
            raise BatchNotRunning

    batch = BatchSpec.model_validate(job.model_dump(include=set(BatchSpec.model_fields)))
    # The stored state is not trusted, and the prefixes may have changed.
    for uri in (batch.input, batch.output):
        error = location_error(uri, task_uri=task_uri, config=config)
        if error is not None:
            return error
    try:
        score_batch(batch, config, version=read_version(batch.version_uri), on_progress=report)
    except BatchNotRunning:
        return None
    except (BatchError, DataError, s3.StorageError, RegistryError) as error:
        cause = error.cause if isinstance(error, BatchError) else None
        if isinstance(error, RegistryError) or storage.comes_from_storage(error):
            cause = type(error).__name__
        if cause is None:
            return str(error)
        _log.exception("batch %s stopped", batch_id)
        return (
            f"an error of storage, the registry or the endpoint stopped the batch ({cause}); see "
            "the cluster's log. Repeat the request to resume it"
        )
    update_running_job(task_uri, batch_id, status="completed")
    return None
