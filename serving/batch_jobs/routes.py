"""HTTP routes of batch jobs. The states are on S3, where every replica reads them; a replica starts
the runner."""

import asyncio
import logging
import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from serving.batch_jobs.job_store import ID_CHARS, read_job, submit_job, unfinished_jobs, update_job
from serving.batch_jobs.locations import location_error
from serving.batch_jobs.runner import start_runner, wait_for_runner
from serving.batch_jobs.schema import BatchError
from serving.batch_jobs.scoring import check_batch, new_batch
from serving.http.asgi import Route, caller, path_id
from serving.http.authenticator import is_admin
from serving.http.schemas import BatchJob, BatchRequest, RequestError, parse_body
from serving.limits import FairSlots, client_name
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import DataError
from tailorbird.storage import s3

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

RETRY_S = 5.0
THREADS = 2
"""Requests that use S3 at the same time. Python's pool has few threads, which reload the keys
too."""

_log = logging.getLogger("ray.serve")


class _Engine(Protocol):
    @property
    def version(self) -> "ModelVersion": ...


class BatchRoutes:
    """The batch routes of a replica. `engine_of` returns the engine for a request's `model`."""

    def __init__(
        self, engine_of: Callable[[str], _Engine], *, task_uri: str, config: ServingConfig
    ) -> None:
        self._engine_of = engine_of
        self._task_uri = task_uri
        self._config = config
        self._slots = FairSlots(THREADS)
        self._watcher: asyncio.Task[None] | None = None
        self._has_new_job = False

    def routes(self) -> dict[str, Route]:
        """Return the routes by path."""
        return {
            "/v1/batches": Route("POST", self._create, scopes=("batch",)),
            "/v1/batches/{id}": Route("GET", self._get, scopes=("batch", "admin")),
            "/v1/batches/{id}/cancel": Route("POST", self._cancel, scopes=("batch", "admin")),
        }

    async def resume(self) -> None:
        """Start a runner if a previous one, for example with other code or another config, left
        unfinished jobs."""
        self._watcher = asyncio.create_task(self._watch_runner())

    async def _create(self, body: bytes, _request_id: str) -> tuple[int, bytes]:
        if not self._config.batch_prefixes:
            message = (
                "batches are not enabled, because the recipe does not set serving.batch_prefixes"
            )
            raise RequestError(404, "no_batches", message)
        request = parse_body(BatchRequest, body)
        version = self._engine_of(request.model).version
        return self._answer(
            await self._in_thread(partial(self._submit, request, version)), status=202
        )

    async def _get(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return self._answer(await self._in_thread(self._requested_job))

    async def _cancel(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        def cancelled(job: BatchJob) -> BatchJob | None:
            if job.is_unfinished:
                return job.model_copy(update={"status": "cancelled"})
            return None

        requested = await self._in_thread(self._requested_job)
        job = await self._in_thread(partial(update_job, self._task_uri, requested.id, cancelled))
        if job.status != "cancelled":
            raise RequestError(
                409, "batch_over", f"batch {job.id} is {job.status} and cannot be cancelled"
            )
        return self._answer(job)

    async def _in_thread(self, call: Callable[[], BatchJob]) -> BatchJob:
        """Return the result of a call in a thread, for which clients wait in turn."""
        return await self._slots.run(call, client=client_name(), cost=1)

    def _answer(self, job: BatchJob, *, status: int = 200) -> tuple[int, bytes]:
        """Return the response. For an unfinished job, start a runner if none exists, for example
        after a restart."""
        if job.is_unfinished:
            self._has_new_job = True
            if self._watcher is None or self._watcher.done():
                self._watcher = asyncio.create_task(self._watch_runner())
        return status, job.model_dump_json().encode()

    async def _watch_runner(self) -> None:
        """Restart the runner until no job is left. A runner ends when there are no jobs or a newer
        runner exists."""
        while True:
            try:
                self._has_new_job = False
                if (
                    not await asyncio.to_thread(unfinished_jobs, self._task_uri)
                    and not self._has_new_job
                ):
                    return
                await wait_for_runner(
                    await asyncio.to_thread(start_runner, self._task_uri, self._config)
                )
            except Exception:
                _log.exception("the runner of batch jobs failed; it is restarted in %s s", RETRY_S)
            await asyncio.sleep(RETRY_S)

    def _requested_job(self) -> BatchJob:
        """Return the job with the id in the path. Existing jobs can be cancelled even if batches
        are disabled.

        A key sees only the jobs of its own name, unless it has the scope `admin`.
        """
        batch_id = path_id.get()
        if re.fullmatch(rf"[0-9a-f]{{{ID_CHARS}}}", batch_id):
            job = read_job(self._task_uri, batch_id)
        else:
            job = None
        sees_all = self._config.api_keys is None or is_admin()
        if job is None or not (sees_all or job.owner == caller.get()):
            message = (
                "no batch of this key has this id; use the `id` in the response of POST /v1/batches"
            )
            raise RequestError(404, "unknown_batch", message, param="id")
        return job

    def _submit(self, request: BatchRequest, version: "ModelVersion") -> BatchJob:
        """Check the request and store its job."""
        try:
            batch = new_batch(
                version,
                input=request.input,
                output=request.output,
                column=request.column,
                id_column=request.id,
            )
            self._require_allowed(batch.input, "input")
            self._require_allowed(batch.output, "output")
            check_batch(batch, version=version)
        except (BatchError, DataError, s3.StorageError) as error:
            raise RequestError(422, "invalid_request", _public_message(error, request)) from None
        return submit_job(self._task_uri, batch, version, owner=caller.get())

    def _require_allowed(self, uri: str, name: str) -> None:
        error = location_error(uri, task_uri=self._task_uri, config=self._config)
        if error is not None:
            raise RequestError(403, "prefix_not_allowed", f"{name}: {error}", param=name)


def _public_message(error: Exception, request: BatchRequest) -> str:
    """Return the message for the client. Storage errors are replaced, because they name internal
    locations."""
    if storage.comes_from_storage(error):
        _log.warning("a batch was refused: %s", error)
        return (
            f"{request.input} or {request.output} does not exist or is not accessible; check both "
            "URIs"
        )
    return str(error)
