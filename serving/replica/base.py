"""Base of the replicas of all tasks: authentication, request log, metrics, and shared routes."""

import asyncio
import gc
import logging
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, Generic, NamedTuple

from starlette.requests import Request

from serving.engines.text_rows import num_bytes
from serving.http.api_keys import require_local_caller, require_same_origin
from serving.http.asgi import (
    ID,
    ASGIApp,
    Route,
    caller,
    http_app,
    path_id,
    with_request_check,
    x_request_id,
)
from serving.http.authenticator import ApiKeyAuthenticator, has_scope, is_admin
from serving.http.key_changes import log_key_change
from serving.http.metrics import (
    IN_PROGRESS,
    KEY_ERRORS,
    LOG_DROPPED,
    REFUSED,
    SERVING,
    Gauges,
    Meter,
    Series,
    with_request_metrics,
)
from serving.http.refusals import Refusals
from serving.http.schemas import (
    CHAMPION,
    FeedbackRequest,
    Models,
    Readiness,
    RequestError,
    ServedModel,
    parse_body,
)
from serving.limits import Admission, FairSlots, client_name, network_of
from serving.pages.render import PageName, page_routes, with_api_docs
from serving.replica.config import CHALLENGER, Arm, ReplicaConfig
from serving.replica.served_versions import EngineT, ServedVersions
from serving.request_log.log import RequestLog
from serving.request_log.schema import FeedbackEntry, LogEntry
from serving.request_log.write_ahead_log import write_ahead_log_folder
from serving.security_log import log_event
from serving.version_checks import require_shipped_code
from tailorbird.config.serving import MAX_BODY_BYTES, ServingConfig
from tailorbird.evaluation.verdict.formatting import model_name
from tailorbird.registry.versions import ModelVersion
from tailorbird.storage.paths import TaskPaths

SWITCH_S = 0.0005
"""Python's thread switch interval; the default is 5 ms. A forward pass releases the GIL at each of
about a hundred operations, and could wait that long each time for a thread that reads requests or
loads a version."""
REDACTIONS = 2  # requests whose texts are redacted at the same time
SEE_LOG = "see the replica's log"

_log = logging.getLogger("ray.serve")


class RequestContext(NamedTuple):
    """The caller, the start time and the experiment arm of a request."""

    route: str
    request_id: str
    started_at: float
    """Start time, by `time.perf_counter()`."""
    caller: str | None
    """Name of the API key."""
    x_request_id: str | None = None
    """The client's own id of the request, or Serve's."""
    arm: Arm | None = None
    """Arm of the experiment; None if the request does not take part in one."""

    def log_entry(self, version: ModelVersion) -> Callable[..., LogEntry]:
        """Return a constructor of log entries for an answer by `version`, with the current time and
        latency."""
        return partial(
            LogEntry,
            request_id=self.request_id,
            x_request_id=self.x_request_id,
            at=datetime.now(UTC),
            model=version.name,
            version=version.version,
            digest=version.digest,
            latency_ms=1000 * (time.perf_counter() - self.started_at),
            route=self.route,
            caller=self.caller,
            arm=self.arm,
        )


def configure_process(config: str) -> ServingConfig:
    """Check the process's code, set its thread options, and return the ServingConfig in a JSON
    text."""
    import torch

    require_shipped_code()
    serving = ServingConfig.model_validate_json(config)
    torch.set_num_threads(serving.cpus_per_replica)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    sys.setswitchinterval(SWITCH_S)
    return serving


class Replica(Generic[EngineT]):
    """The part of a replica that all tasks share. A deployment adds the routes of its task."""

    def __init__(
        self,
        versions: ServedVersions[EngineT],
        *,
        task: str,
        task_uri: str,
        config: ServingConfig,
        meter: Meter | None = None,
    ) -> None:
        self.versions = versions
        self.meter = meter or Meter()
        self.log: RequestLog | None = None
        if config.request_log:
            self.log = RequestLog(
                config.request_log, texts=config.log_texts, wal_folder=write_ahead_log_folder()
            )
        self._config = config
        self._paths = TaskPaths(task_uri)
        self._refusals = Refusals(self._paths.name)
        self._authenticator: ApiKeyAuthenticator | None = None
        if config.api_keys is not None:
            on_change = partial(log_key_change, task=self._paths.name)
            self._authenticator = ApiKeyAuthenticator(config.api_keys, on_change=on_change)
        self._admission = Admission(
            requests=config.max_requests(task),
            texts=config.max_queued_texts,
            tokens=config.max_queued_tokens,
        )
        self._redactions = FairSlots(REDACTIONS)
        self._background: list[asyncio.Task[None]] = []

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a configuration (see `ServedVersions.reconfigure`). The first call starts the
        background tasks."""
        is_first = not self._background
        if is_first:
            loops = [
                self._refusals.keep_logging(),
                self.meter.keep_exporting(self._gauges),
                self.versions.keep_retrying(),
            ]
            if self._authenticator is not None:
                loops.append(self._authenticator.keep_current())
            if self.log is not None:
                loops.append(self.log.keep_writing())
            self._background = [asyncio.create_task(loop) for loop in loops]
            for task in self._background:
                task.add_done_callback(_log_failure)
        await self.versions.reconfigure(user_config)
        self._log_configuration(user_config)
        # a full collection of the objects of torch and Ray stops all requests for 0.5 s
        if is_first:
            gc.freeze()

    def _log_configuration(self, user_config: dict[str, Any]) -> None:
        versions = ReplicaConfig.model_validate(user_config)
        log_event(
            "configuration",
            task=self._paths.name,
            serving=self._config.model_dump(mode="json", exclude_defaults=True),
            versions=versions.model_dump(mode="json", exclude={"verdict", "costs"}),
        )

    def begin(self, route: str, request_id: str) -> RequestContext:
        """Return the context of a new request; raise RequestError 503 before a version is
        loaded."""
        _ = self.versions.champion
        return RequestContext(
            route=route,
            request_id=request_id,
            started_at=time.perf_counter(),
            caller=caller.get(),
            x_request_id=x_request_id.get(),
        )

    def assign(self, context: RequestContext, *, model: str) -> tuple[EngineT, RequestContext]:
        """Return the engine that answers, and the context with the arm.

        Raises RequestError 404 for an unknown `model`.
        """
        engine, arm = self.versions.assign_arm(model)
        return engine, context._replace(arm=arm)

    def shadow(self, context: RequestContext) -> tuple[EngineT, RequestContext] | None:
        """Return the challenger's engine and the context of its answer, or None if it does not
        answer too."""
        if context.arm != "champion":
            return None
        engine = self.versions.draw_shadow()
        if engine is None:
            return None
        return engine, context._replace(arm="shadow")

    def asgi_app(self, routes: dict[str, Route], *, page: PageName) -> ASGIApp:
        """Return the application with `routes`, the page at `/`, and the routes of all tasks."""
        routes = routes | page_routes(page) | self._routes()
        app = http_app(
            with_api_docs(routes, config=self._config),
            max_body_bytes=MAX_BODY_BYTES,
            authenticate=self._authenticate,
            admit=self._admit,
            lifespan=self._lifespan,
        )
        if self._authenticator is None and self._config.guarded:  # the gateway may use cookies
            app = with_request_check(app, check=require_same_origin, only_posts=True)
        elif self._authenticator is None:
            app = with_request_check(app, check=require_local_caller)
        return with_request_metrics(app, meter=self.meter, refusals=self._refusals)

    @asynccontextmanager
    async def _lifespan(self, _app: object) -> AsyncIterator[None]:
        yield
        self._refusals.log()
        if self.log is not None:
            await self.log.close()

    async def loggable(self, texts: Sequence[str]) -> list[str | None]:
        """Return the texts as the request log stores them: None for each if it does not store
        texts.

        A thread redacts them: 1 MB takes 0.2 to 0.5 s, for which other requests would wait in the
        event loop. They still wait for a part without two words in a row, which is redacted in one
        piece.
        """
        log = self.log
        if log is None or not self._config.log_texts:
            return [None] * len(texts)

        def redacted() -> list[str | None]:
            return [log.loggable(text) for text in texts]

        return await self._redactions.run(
            redacted, client=client_name(), cost=sum(map(num_bytes, texts))
        )

    def charge(self, **amounts: int) -> None:
        """Charge texts or tokens to the API key of the current request, if it has one."""
        if self._authenticator is not None:
            self._authenticator.charge(**amounts)

    def _authenticate(self, headers: Mapping[str, str], route: Route) -> None:
        if self._authenticator is None:
            return
        if route.open:
            self._authenticator.identify(headers)  # /readyz shows details to admins
        else:
            self._authenticator.authenticate(headers, scopes=route.scopes)

    def _admit(self, request: Request) -> AbstractContextManager[None]:
        """Hold a place in the replica for the client: the name of its API key or, without keys, its
        network."""
        if name := caller.get():
            return self._admission.request(name)
        address = request.client.host if request.client else ""
        if self._config.guarded:  # the gateway adds the client's address at the end
            # some gateways add a line of their own
            lines = request.headers.getlist("x-forwarded-for") or [address]
            address = lines[-1].rsplit(",", 1)[-1].strip()
        return self._admission.request(network_of(address))

    def _gauges(self) -> Gauges:
        """Update the counts of dropped rows, and return the gauges for Prometheus."""
        if self.log is not None:
            self.meter.count_to(LOG_DROPPED, "answers", total=self.log.answers.num_dropped)
            self.meter.count_to(LOG_DROPPED, "feedback", total=self.log.feedback.num_dropped)
        versions = {name: engine.version for name, engine in self.versions.engines.items()}
        gauges: dict[Series, float] = {
            (IN_PROGRESS, ()): float(self.meter.in_progress),
            (REFUSED, ()): float(self.versions.refused is not None),
            (KEY_ERRORS, ()): float(self._authenticator.num_errors if self._authenticator else 0),
        }
        return gauges | {
            (SERVING, (version.name, version.version, name)): 1.0
            for name, version in versions.items()
        }

    def _routes(self) -> dict[str, Route]:
        return {
            "/v1/models": Route("GET", self._models),
            f"/v1/models/{ID}": Route("GET", self._model),
            "/v1/feedback": Route("POST", self._feedback, scopes=("feedback",)),
            "/healthz": Route("GET", self._healthz, open=True),
            "/readyz": Route("GET", self._readyz, open=True),
        }

    async def _models(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        _ = self.versions.champion  # raises 503 before a version is loaded
        models = Models(
            data=[self._served_model(name) for name in self.versions.engines],
            examples=list(self._config.examples),
            feedback=self.log is not None,
        )
        return 200, models.model_dump_json().encode()

    async def _model(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        engine = self.versions.engine_of(path_id.get())
        names = [name for name, served in self.versions.engines.items() if served is engine]
        return 200, self._served_model(names[0]).model_dump_json().encode()

    def _served_model(self, name: str) -> ServedModel:
        """Return the entry of a model. Keys without the scope `read` or `admin` see neither its
        system prompt nor its cost."""
        config = self.versions.config
        assert config is not None
        version = self.versions.engines[name].version
        details = self._authenticator is None or has_scope("read", "admin")
        return ServedModel(
            id=name,
            created=int(datetime.fromisoformat(version.created_at).timestamp()),
            name=version.name,
            version=version.version,
            kind=version.kind,
            description=model_name(version.kind),
            digest=version.digest,
            system=version.prompting.system if details and version.prompting else None,
            classes=list(version.classes),
            cost=config.costs.get(version.digest) if details else None,
            verdict=config.verdict if name == CHAMPION else None,
        )

    async def _feedback(self, body: bytes, _request_id: str) -> tuple[int, bytes]:
        """Log the feedback. Its request id is checked when the log is read."""
        feedback = parse_body(FeedbackRequest, body)
        if self.log is None:
            reason = "feedback is not accepted, because the recipe does not set serving.request_log"
            raise RequestError(404, "no_request_log", reason)
        feedback.require_fields_of(self.versions.champion.version.task)
        correct_answer = None
        if feedback.correct_answer is not None:
            [correct_answer] = await self.loggable([feedback.correct_answer])
            if correct_answer is None:
                reason = (
                    "the recipe does not set serving.log_texts, so no text is stored; give "
                    "`label` or `score`"
                )
                raise RequestError(422, "invalid_request", reason, param="correct_answer")
        entry = FeedbackEntry(
            request_id=feedback.bare_id,
            at=datetime.now(UTC),
            row=feedback.row,
            label=None if feedback.label is None else str(feedback.label),
            score=feedback.score,
            correct_answer=correct_answer,
            caller=caller.get(),
        )
        self.log.feedback.add([entry])
        return 202, feedback.model_dump_json(exclude_none=True).encode()

    async def _healthz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, b'{"status":"up"}'

    async def _readyz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        versions = self.versions
        if not versions.engines:
            return 503, Readiness(status="loading").model_dump_json(exclude_none=True).encode()
        refused, reason = versions.refused or (None, None)
        absent = versions.absent
        # errors may contain internal details
        if self._authenticator is not None and not is_admin():
            reason = reason and SEE_LOG
            absent = dict.fromkeys(absent, SEE_LOG)
        version = versions.champion.version
        challenger = versions.engines.get(CHALLENGER)
        readiness = Readiness(
            status="ready",
            replica=_replica_id(),
            config=versions.config_id,
            version=version.version,
            digest=version.digest,
            refused=refused,
            reason=reason,
            challenger=None if challenger is None else challenger.version.digest,
            absent=absent or None,
        )
        return 200, readiness.model_dump_json(exclude_none=True).encode()


def _log_failure(task: asyncio.Task[None]) -> None:
    """Log the exception of a background task that has ended, unless it was cancelled."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("the background task %s has failed", task.get_coro(), exc_info=error)


def _replica_id() -> str | None:
    """Return Serve's id of this replica, or None outside of Serve."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_tag)
    except RayServeException:
        return None
