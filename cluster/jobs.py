"""Submit a recipe as a Ray job and follow it, with Ray's client of its job API."""

import re
import signal
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import requests

from cluster.auth import DASHBOARD, SessionError, Unreachable
from cluster.dashboard import dashboard_url, request_dashboard
from cluster.job_package import RECIPE_FILE, pack
from cluster.ray_private import HEAD_RESOURCE, job_client
from cluster.requirements import ALWAYS, fits, requirements
from tailorbird.config.base import digest
from tailorbird.config.recipe import Recipe
from tailorbird.storage.code_files import code_sha256, runtime_files

ENTRYPOINT = f"python -m tailorbird run {RECIPE_FILE} --keep-log"
DRIVER_MEMORY_GIB = 2.0
HEAD_SHARE = 0.001  # of the head's own resource, which places the driver there
SUBMISSION = "SUBMISSION"
PENDING = "PENDING"
SUCCEEDED = "SUCCEEDED"
STOPPED = "STOPPED"
OVER = (SUCCEEDED, STOPPED, "FAILED")
FAILURE = 1
SIGNALLED = 128  # plus the signal's number: exit code of a process that a signal ended

MAX_OUTAGE_S = 120.0
MAX_LOG_OUTAGE_S = 10.0
RETRY_S = 1.0
POLL_S = 2.0  # between two reads of the status and the log of a job that is followed

Value = TypeVar("Value")
Write = Callable[[str], Any]
OnStatus = Callable[["Job"], Any]
Effect = Literal["started", "started again", "running", "done"]


class JobError(ValueError):
    """A job that does not exist, or that Ray rejects. The message contains the reason."""


@dataclass(frozen=True)
class Job:
    """A job as Ray reports it, without its environment variables, which may contain secrets."""

    id: str
    status: str
    message: str
    driver_exit_code: int | None

    @property
    def is_over(self) -> bool:
        return self.status in OVER

    @property
    def exit_code(self) -> int | None:
        """Exit code for the command that runs the job: 0 if it succeeded, None while it runs."""
        if not self.is_over:
            return None
        if self.status == SUCCEEDED:
            return 0
        if self.status == STOPPED:
            return SIGNALLED + signal.SIGTERM
        # None if Ray could not start the driver or lost it
        code = self.driver_exit_code or FAILURE
        if code < 0:
            return SIGNALLED - code
        return code

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"exit_code": self.exit_code}

    def activity(self) -> str:
        """Return what the job does or waits for, while its log has no new lines."""
        if self.status == PENDING:
            return f"{self.id} is pending: {self.message.rstrip('.')}"
        return f"{self.id} is {self.status.lower()}; its log has no new line"

    def line(self) -> str:
        return f"{self.id}: {self.status}, exit code {self.exit_code}"


@dataclass(frozen=True)
class Submitted:
    """A job, and the effect of submitting it: whether it was started, or was already running or
    done."""

    job: Job
    how: Effect

    def line(self) -> str:
        summary = {
            "started": "is started",
            "started again": "is started again; it reuses the stages that the earlier job finished",
            "running": "is already waiting or running; no job was started",
            "done": "has already succeeded; no job was started (use `--again` to start one, for "
            "example for new data)",
        }[self.how]
        return f"{self.job.id} {summary}"


def submit(
    recipe: Recipe, *, root: Path, again: bool = False, driver_memory_gib: float = DRIVER_MEMORY_GIB
) -> Submitted:
    """Run the recipe on the cluster with the code under `root`. A second call returns the same job.

    The name of a job, like that of a run, is derived from the recipe with its overrides and from
    the code. If the last job failed or was stopped, or if it succeeded and `again` is set, a new
    job with the next number is started, and the earlier log is kept. The recipe is part of the
    package and not of the command, because every client that can list jobs can read the command. No
    environment variables are sent; a run uses those with which Ray was started.

    The driver runs on the head and reserves `driver_memory_gib` of its memory, so drivers that
    would not fit wait. Raises JobError before the upload if the cluster has another version of Ray
    than the code requires.
    """
    require_ray(root)
    hashes = {"recipe_sha256": digest(recipe), "code_sha256": code_sha256(runtime_files(root))}
    name = f"{recipe.name}-{digest(hashes)[:12]}"
    package = pack(root, recipe=recipe)
    metadata = {"recipe": recipe.name, **hashes}
    reserved = driver_resources(driver_memory_gib)
    return start(
        name,
        entrypoint=ENTRYPOINT,
        package=package,
        metadata=metadata,
        again=again,
        resources=reserved,
    )


def require_ray(root: Path) -> None:
    """Raise JobError if the cluster's version of Ray does not satisfy the requirement of the code
    under `root`.

    The dashboard does not report the cluster's version of Python.
    """
    _client()  # raises JobError for another server than Ray's dashboard
    running = str(request_dashboard("GET", "/api/version").json()["ray_version"])
    wanted = dict(requirements(root).packages[ALWAYS])["ray"]
    if not fits(running, wanted):
        raise JobError(
            f"the cluster at {dashboard_url()} has Ray {running}, but the code in {root} requires "
            f"ray{wanted}; nothing was uploaded. Submit to a cluster with this version, or use the "
            "version of the code for this cluster"
        )


def driver_resources(memory_gib: float) -> dict[str, Any]:
    """Return the fields of Ray's job API that place a driver on the head and reserve memory (GiB)
    for it.

    Ray places a driver without resources on the head too, but starts any number of them there.
    """
    return {
        "entrypoint_memory": int(memory_gib * 2**30),
        "entrypoint_resources": {HEAD_RESOURCE: HEAD_SHARE},
    }


def start(
    name: str,
    *,
    entrypoint: str,
    package: bytes,
    metadata: Mapping[str, str] | None = None,
    again: bool = False,
    resources: Mapping[str, Any] | None = None,
) -> Submitted:
    """Start the entrypoint as a job with this name, unless such a job is running or has succeeded;
    see `submit`."""
    client = _client()
    last = _last_attempt(client, name)
    if last is not None and not last.is_over:
        return Submitted(last, "running")
    if last is not None and last.status == SUCCEEDED and not again:
        return Submitted(last, "done")
    job_id = name
    how: Effect = "started"
    if last is not None:
        job_id = f"{name}-{_number(last.id, name) + 1}"  # Ray rejects an id that was used before
        how = "started again"
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.zip"
        path.write_bytes(package)
        try:
            client.submit_job(
                entrypoint=entrypoint,
                submission_id=job_id,
                runtime_env={"working_dir": str(path)},
                metadata=dict(metadata or {}),
                **(resources or {}),
            )
        except RuntimeError as error:
            with suppress(JobError):  # another client started it at the same time
                return Submitted(_read(client, job_id), "running")
            raise JobError(f"Ray does not start the job: {error}") from None
    return Submitted(_read(client, job_id), how)


def follow(
    job_id: str,
    *,
    write: Write,
    on_status: OnStatus = lambda _: None,
    max_outage_s: float = MAX_OUTAGE_S,
) -> Job:
    """Write the job's log as it grows, and return the job when it has ended.

    `on_status` receives the job every POLL_S seconds. A dashboard outage of up to `max_outage_s`
    seconds only causes a delay. Raises SessionError after a longer outage.
    """
    client = _client()
    num_written = 0
    while True:
        job = _retry(lambda: _read(client, job_id), max_outage_s=max_outage_s)
        if not job.is_over:
            on_status(job)
        try:
            log = _retry(
                lambda: client.get_job_logs(job_id),
                max_outage_s=MAX_LOG_OUTAGE_S if job.is_over else 0.0,
            )
            write(log[num_written:])
            num_written = max(num_written, len(log))
        except (RuntimeError, SessionError) as error:
            if job.is_over:  # return the ended job even if its log cannot be read
                write(f"\nthe rest of the log cannot be read: {error}\n")
        if job.is_over:
            return job
        time.sleep(POLL_S)


def _retry(request: Callable[[], Value], *, max_outage_s: float) -> Value:
    """Repeat a request that the dashboard does not answer, or answers with an error: it may be
    restarting."""
    deadline = time.monotonic() + max_outage_s
    while True:
        try:
            return request()
        except (Unreachable, RuntimeError):
            if time.monotonic() > deadline:
                raise
        time.sleep(RETRY_S)


def _last_attempt(client: Any, name: str) -> Job | None:
    """Return the job with this name and the highest number, or None."""
    jobs = [job for job in _list(client) if re.fullmatch(rf"{re.escape(name)}(-\d+)?", job.id)]
    return max(jobs, key=lambda job: _number(job.id, name), default=None)


def _number(job_id: str, name: str) -> int:
    return int(job_id.removeprefix(name).removeprefix("-") or 1)


def _client() -> Any:
    """Return Ray's client for the dashboard; raise JobError if another server answers."""
    try:
        return job_client(dashboard_url(), request=request_dashboard)
    except (RuntimeError, KeyError, requests.RequestException) as error:
        raise JobError(
            f"{dashboard_url()} does not answer like Ray's dashboard ({error}); set the "
            f"dashboard's address with --address or {DASHBOARD}"
        ) from None


def _list(client: Any) -> list[Job]:
    return [_job(details) for details in client.list_jobs() if details.type == SUBMISSION]


def _read(client: Any, job_id: str) -> Job:
    try:
        return _job(client.get_job_info(job_id))
    except RuntimeError:
        # raises it again if the dashboard answers this request with an error too
        existing = ", ".join(f"{job.id} ({job.status})" for job in _list(client))
    raise JobError(
        f"no job {job_id!r} was submitted to {dashboard_url()}; existing jobs: {existing or 'none'}"
    )


def _job(details: Any) -> Job:
    """Return the job of Ray's JobDetails."""
    return Job(
        id=details.submission_id,
        status=details.status.value,
        message=details.message or "",
        driver_exit_code=details.driver_exit_code,
    )
