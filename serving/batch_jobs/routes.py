"""Batches over HTTP: a request leaves a state on S3, from which any replica answers, and calls the desk that works."""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from serving.batch_jobs.runner import (
    job_uri,
    location_error,
    read_job,
    start_runner,
    unfinished_jobs,
    update_job,
    wait_for_runner,
)
from serving.batch_jobs.scoring import BatchError, check_batch, new_batch
from serving.http.asgi import Route, path_id
from serving.http.schemas import BatchJob, BatchRequest, RequestError, parse_batch
from tailorbird import storage
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import DataError
from tailorbird.storage import s3

if TYPE_CHECKING:
    from serving.batch_jobs.worker import Batch
    from tailorbird.registry.versions import ModelVersion

ID_CHARS = 24
RETRY_S = 5.0

_log = logging.getLogger("ray.serve")


class _Engine(Protocol):
    @property
    def version(self) -> "ModelVersion": ...


class BatchRoutes:
    """A replica's routes of batches; `engine_of` gives what a request's `model` names."""

    def __init__(self, engine_of: Callable[[str], _Engine], *, task_uri: str, config: ServingConfig) -> None:
        self._engine_of = engine_of
        self._home = task_uri
        self._section = config
        self._working: asyncio.Task[None] | None = None
        self._asked = False

    def routes(self) -> dict[str, Route]:
        """By path."""
        return {
            "/v1/batches": Route("POST", self._create),
            "/v1/batches/{id}": Route("GET", self._get),
            "/v1/batches/{id}/cancel": Route("POST", self._cancel),
        }

    async def resume(self) -> None:
        """Takes over what a former desk, by other code or with another section, has not begun."""
        self._working = asyncio.create_task(self._keep_working())

    async def _create(self, body: bytes, _request_id: str) -> tuple[int, bytes]:
        self._require_open()
        request = parse_batch(body)
        version = self._engine_of(request.model).version
        status = await asyncio.to_thread(self._queued, request, version)
        return self._told(status, code=202)

    async def _get(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return self._told(await asyncio.to_thread(self._found))

    async def _cancel(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        def cancelled(status: BatchJob) -> dict[str, Any] | None:
            return {"status": "cancelled"} if status.status in ("queued", "running") else None

        found = await asyncio.to_thread(self._found)
        status = await asyncio.to_thread(update_job, self._home, found.id, cancelled)
        if status.status != "cancelled":
            raise RequestError(409, "batch_over", f"batch {status.id} is {status.status}: there is nothing to cancel")
        return self._told(status)

    def _told(self, status: BatchJob, *, code: int = 200) -> tuple[int, bytes]:
        """The answer; where work is left, the desk is seen to be there: who started it may be gone."""
        if status.status in ("queued", "running"):
            self._asked = True
            if self._working is None or self._working.done():
                self._working = asyncio.create_task(self._keep_working())
        return code, status.model_dump_json().encode()

    async def _keep_working(self) -> None:
        """Until no batch is left: the desk ends when it finds none, maybe the moment before one came, or when another
        takes over."""
        while True:
            try:
                self._asked = False
                if not await asyncio.to_thread(unfinished_jobs, self._home) and not self._asked:
                    return
                await wait_for_runner(await asyncio.to_thread(start_runner, self._home, self._section))
            except Exception:
                _log.exception("the desk of batches cannot work; it is asked again in %s s", RETRY_S)
            await asyncio.sleep(RETRY_S)

    def _require_open(self) -> None:
        if not self._section.batch_prefixes:
            why = "batches are closed here: the recipe's serving.batch_prefixes names no prefix that they may use"
            raise RequestError(404, "no_batches", why)

    def _found(self) -> BatchJob:
        """Also where batches are closed by now: one that runs can still be cancelled."""
        batch_id = path_id.get()
        found = read_job(self._home, batch_id) if re.fullmatch(rf"[0-9a-f]{{{ID_CHARS}}}", batch_id) else None
        if found is None:
            raise RequestError(
                404, "unknown_batch", "no batch has this id; POST /v1/batches answers with one", param="id"
            )
        return found[0]

    def _queued(self, request: BatchRequest, version: "ModelVersion") -> BatchJob:
        """The batch's state, written if it is new; one that is over is looked at again, and done where it is not."""
        try:
            batch = new_batch(
                version, input=request.input, output=request.output, column=request.column, id_column=request.id
            )
            for name in ("input", "output"):
                self._require_allowed(getattr(batch, name), name)
            check_batch(batch, version=version)
        except (BatchError, DataError, s3.StorageError) as error:
            raise RequestError(422, "invalid_request", _public_message(error, request)) from None
        return _write_job(self._home, batch, version)

    def _require_allowed(self, uri: str, name: str) -> None:
        refused = location_error(uri, task_uri=self._home, config=self._section)
        if refused is not None:
            raise RequestError(403, "prefix_not_allowed", f"{name}: {refused}", param=name)


def batch_id_of(batch: "Batch") -> str:
    """The same for the same input, output and version."""
    told = json.dumps([batch.input, batch.output, batch.digest])
    return hashlib.sha256(told.encode()).hexdigest()[:ID_CHARS]


def _write_job(task_uri: str, batch: "Batch", version: "ModelVersion") -> BatchJob:
    from tailorbird.registry.versions import now

    at = now()
    status = BatchJob(
        id=batch_id_of(batch),
        status="queued",
        input=batch.input,
        output=batch.output,
        model=version.name,
        version=version.version,
        version_uri=batch.version_uri,
        digest=batch.digest,
        column=batch.column,
        id_column=batch.id_column,
        created_at=at,
        updated_at=at,
    )
    try:
        storage.write_if_match(job_uri(task_uri, status.id), status.model_dump_json().encode(), etag=None)
    except s3.Conflict:
        return update_job(task_uri, status.id, lambda found: _requeue(found, batch))
    return status


def _requeue(found: BatchJob, batch: "Batch") -> dict[str, Any] | None:
    """What changes of a batch that is asked for once more; RequestError 409 where its columns are others."""
    if (found.column, found.id_column) != (batch.column, batch.id_column):
        told = f"batch {found.id} reads {found.column!r} and {found.id_column!r}: give the same, or another output"
        raise RequestError(409, "other_columns", told, param="column")
    return None if found.status in ("queued", "running") else {"status": "queued", "error": None}


def _public_message(error: Exception, request: BatchRequest) -> str:
    """What a client may read: of what the store said, not where it is."""
    if storage.is_behind(error):
        _log.warning("a batch was refused: %s", error)
        return f"{request.input} or {request.output} is not there, or not ours to use; check both"
    return str(error)
