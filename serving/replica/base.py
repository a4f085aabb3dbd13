"""What every replica is, whatever it answers: versions by name, changed without a gap, told of by the same routes."""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from serving.http.api_keys import ApiKeyAuthenticator, read_subject_key, require_local_caller
from serving.http.asgi import ASGIApp, Route, caller, http_app
from serving.http.metrics import (
    IN_PROGRESS,
    LOG_DROPPED,
    REFUSED,
    SERVING,
    Gauges,
    Instruments,
    Meter,
    with_request_metrics,
)
from serving.http.schemas import (
    CHAMPION,
    CHAT_ID,
    COMPLETION_ID,
    Models,
    Readiness,
    RequestError,
    ServedModel,
    config_id,
    parse_feedback,
)
from serving.pages.render import with_api_docs
from serving.replica.experiment import CHALLENGER, Arm, TrafficSplit
from serving.request_log.log import RequestLog
from serving.request_log.schema import FeedbackEntry
from serving.request_log.write_ahead_log import write_ahead_log_folder
from serving.request_log.writer import utc_now
from tailorbird.config.serving import ServingConfig

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion


class Engine(Protocol):
    """What answers for one version."""

    @property
    def version(self) -> "ModelVersion": ...


_log = logging.getLogger("ray.serve")

SWITCH_S = 0.0005
"""How long a thread may keep Python from the others, for Python's 5 ms: a forward pass gives it up at each of a hundred
operations, and would wait as long each time for whoever reads requests, or loads a version, meanwhile."""
ABSENT_S, MAX_ABSENT_S = 60.0, 3600.0
"""After how long a version beside the champion that could not be loaded is tried again: twice as long each time."""

EngineT = TypeVar("EngineT", bound=Engine)


class Replica(Generic[EngineT]):
    """The engines that answer: the champion's, and of versions beside it, one perhaps on trial; and the champion that
    was refused last.

    `load` takes a version's URI and its digest; `retire` an engine that no longer serves.
    """

    def __init__(
        self,
        load: Callable[[str, str], EngineT],
        *,
        config: ServingConfig,
        unload: Callable[[EngineT], None] = lambda _former: None,
        meter: Meter | None = None,
    ) -> None:
        sys.setswitchinterval(SWITCH_S)
        self._load = load
        self._unload = unload
        self._section = config
        self.meter = meter or Meter()
        self._door = ApiKeyAuthenticator(config.api_keys) if config.api_keys is not None else None
        self.log: RequestLog | None = None
        if config.request_log:
            key = read_subject_key(config.subject_key) if config.subject_key else None
            uri, texts = config.request_log, config.log_texts
            self.log = RequestLog(uri, subject_key=key, texts=texts, wal_folder=write_ahead_log_folder())
        self._watches: list[asyncio.Task[None]] = []
        self._engines: dict[str, EngineT] = {}
        self._absent: dict[str, str] = {}
        self._trial: TrafficSplit | None = None
        self._verdict: str | None = None
        self._config = ""
        self._asked: dict[str, Any] = {}
        self._refused: tuple[str, str] | None = None
        self._changes: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Loads what is asked for beside what serves, then swaps; requests go on meanwhile.

        The first versions that cannot be loaded fail the replica, and Serve's status says why. Later ones are refused:
        the former serve on, and /readyz names the refused champion. Later ones are loaded after this has returned:
        while it runs, Serve sends the replica nothing new, and where it is the only one, requests wait.
        """
        if not self._watches:
            watched = [self._door.keep_current()] if self._door else []
            watched += [self.log.keep_writing()] if self.log else []
            watched += [self.meter.keep_exporting(self._gauges, to_ray=Instruments), self._keep_trying()]
            self._watches = [asyncio.create_task(watch) for watch in watched]
        if self._engines:
            self._changes = asyncio.create_task(self._change(user_config, after=self._changes))
        else:
            self._engines, self._absent = await asyncio.to_thread(self._loaded, user_config)
            self._told(user_config)

    async def _change(self, user_config: dict[str, Any], *, after: asyncio.Task[None] | None) -> None:
        """What was asked for last is what serves in the end."""
        if after is not None:
            await after
        try:
            engines, absent = await asyncio.to_thread(self._loaded, user_config)
        except Exception as error:
            self._refused, self._config = (user_config["digest"], str(error)), config_id(user_config)
            return
        self._refused = None
        self._told(user_config)
        self._swap(engines, absent)

    def _swap(self, engines: dict[str, EngineT], absent: dict[str, str]) -> None:
        former, self._engines, self._absent = self._engines, engines, absent
        kept = {id(engine) for engine in engines.values()}
        for engine in {id(engine): engine for engine in former.values() if id(engine) not in kept}.values():
            self._unload(engine)

    async def _keep_trying(self) -> None:
        """Loads what is absent or has stopped as soon as it can be, until cancelled: what was wrong may have been the
        store."""
        wait_s = ABSENT_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_ABSENT_S) if self._absent else ABSENT_S
            incomplete = bool(self._absent) or not all(map(_runs, self._engines.values()))
            if incomplete and (self._changes is None or self._changes.done()):
                self._changes = asyncio.create_task(self._try_again())

    async def _try_again(self) -> None:
        self._swap(*await asyncio.to_thread(self._loaded, self._asked))

    def _told(self, user_config: dict[str, Any]) -> None:
        self._asked = user_config
        self._verdict, self._config = user_config.get("verdict"), config_id(user_config)
        self._trial = TrafficSplit.of(user_config.get(CHALLENGER))

    def _loaded(self, user_config: dict[str, Any]) -> tuple[dict[str, EngineT], dict[str, str]]:
        """The engine of each name, those that serve already not loaded again, and why there is none of others: only the
        champion has to be there."""
        engines = {engine.version.digest: engine for engine in self._engines.values() if _runs(engine)}
        asked = {CHAMPION: user_config, **user_config.get("beside", {})}
        if CHALLENGER in user_config:
            asked[CHALLENGER] = user_config[CHALLENGER]
        found, absent = {}, {}
        for name, version in asked.items():
            digest = version["digest"]
            try:
                found[name] = engines.get(digest) or self._load(version["version_uri"], digest)
            except Exception as error:
                if name == CHAMPION:
                    raise
                absent[name] = str(error)
                if self._absent.get(name) != absent[name]:
                    _log.exception("%s cannot be loaded, the champion serves without it", version["version_uri"])
            else:
                engines[digest] = found[name]
        return found, absent

    @property
    def engines(self) -> Mapping[str, EngineT]:
        """Those that answer, by name."""
        return self._engines

    @property
    def engine(self) -> EngineT:
        """The champion's; RequestError 503 where the first is still being loaded."""
        if not self._engines:
            raise RequestError(503, "not_ready", "the model is still being loaded; ask /readyz")
        return self._engines[CHAMPION]

    def engine_of(self, model: str) -> EngineT:
        """Of a request's `model`: our name, the task's, a version or `name@version`; RequestError 404 for others."""
        champion = self.engine
        if model in self._engines:
            return self._engines[model]
        if model == champion.version.name:
            return champion
        for engine in self._engines.values():
            version = engine.version
            if model in (version.version, f"{version.name}@{version.version}"):
                return engine
        raise RequestError(
            404,
            "unknown_model",
            f"no model {model!r} here; /v1/models says what serves",
            param="model",
            code="model_not_found",
        )

    def drawn(self, model: str, *, unit: str) -> tuple[EngineT, Arm | None]:
        """Who answers a request for `model`, and as which arm; `unit` is its subject, else its id. RequestError as
        `engine_of`.

        Whoever asks for the champion, or by the task's name, takes part in a trial; who names another model does not.
        """
        engine = self.engine_of(model)
        if model not in (CHAMPION, engine.version.name):
            return engine, None
        on_trial = self._engines.get(CHALLENGER)
        if on_trial is not None and self._trial is not None and self._trial.draws("canary", unit):
            return on_trial, "canary"
        return engine, "champion"

    def shadow(self, *, unit: str) -> EngineT | None:
        """Who answers too, unheard, a request that the champion answers; None for most, or all."""
        drawn = self._trial is not None and self._trial.draws("shadow", unit)
        return self._engines.get(CHALLENGER) if drawn else None

    def is_on_trial(self, engine: EngineT) -> bool:
        """Whether it still is: what waits may be older than the trial."""
        return self._engines.get(CHALLENGER) is engine

    def asgi_app(self, routes: dict[str, Route], *, on_startup: Callable[[], Awaitable[None]] | None = None) -> ASGIApp:
        """The replica's routes and those given, behind the door where there is one."""
        app = http_app(
            with_api_docs(routes | self._routes(), config=self._section),
            max_body_bytes=self._section.max_body_bytes,
            authenticate=self._authenticate,
            on_startup=on_startup,
            on_shutdown=self.log.close if self.log else None,
        )
        return with_request_metrics(app, meter=self.meter)

    def _authenticate(self, headers: Mapping[str, str]) -> str | None:
        if self._door is not None:
            return self._door.authenticate(headers)
        if not self._section.guarded:
            require_local_caller(headers)
        return None

    def _gauges(self) -> Gauges:
        """What Prometheus is told of now, every few seconds."""
        if self.log is not None:
            self.meter.count_to(LOG_DROPPED, "answers", total=self.log.answers.num_dropped)
            self.meter.count_to(LOG_DROPPED, "feedback", total=self.log.feedback.num_dropped)
        versions = {name: engine.version for name, engine in self._engines.items()}
        serving = {(SERVING, (version.name, version.version, name)): 1.0 for name, version in versions.items()}
        return serving | {(IN_PROGRESS, ()): self.meter.in_progress, (REFUSED, ()): float(self._refused is not None)}

    def _routes(self) -> dict[str, Route]:
        """What a replica tells of itself."""
        return {
            "/v1/models": Route("GET", self._models),
            "/v1/feedback": Route("POST", self._feedback),
            "/healthz": Route("GET", self._healthz, open=True),
            "/readyz": Route("GET", self._readyz, open=True),
        }

    async def _models(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        _ = self.engine  # not ready before there is one
        served = [
            ServedModel(
                id=name,
                created=int(datetime.fromisoformat(engine.version.created_at).timestamp()),
                name=engine.version.name,
                version=engine.version.version,
                kind=engine.version.kind,
                digest=engine.version.digest,
                classes=list(engine.version.classes),
                verdict=self._verdict if name == CHAMPION else None,
            )
            for name, engine in self._engines.items()
        ]
        return 200, Models(data=served).model_dump_json().encode()

    async def _feedback(self, body: bytes, _request_id: str) -> tuple[int, bytes]:
        """Keeps what was right; whether there was such a request is seen when the log is read."""
        given = parse_feedback(body)
        if self.log is None:
            why = "no answers are kept here (the recipe's serving.request_log names no place), so no feedback either"
            raise RequestError(404, "no_request_log", why)
        told = given.request_id.removeprefix(CHAT_ID).removeprefix(COMPLETION_ID)  # as the body of a chat answer has it
        self.log.feedback.add([FeedbackEntry(told, utc_now(), given.row, given.label, caller=caller.get())])
        return 202, given.model_dump_json().encode()

    async def _healthz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, b'{"status":"up"}'

    async def _readyz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        if not self._engines:
            return 503, Readiness(status="loading").model_dump_json(exclude_none=True).encode()
        refused, reason = self._refused or (None, None)
        version = self.engine.version
        if reason is not None and self._door is not None:  # whoever may reach a door is no friend yet
            reason = "the replica's log says why"
        absent = dict.fromkeys(self._absent, "the replica's log says why") if self._door else self._absent
        ready = Readiness(
            status="ready",
            replica=_replica_id(),
            config=self._config,
            version=version.version,
            digest=version.digest,
            refused=refused,
            reason=reason,
            trial=self._engines[CHALLENGER].version.digest if CHALLENGER in self._engines else None,
            absent=absent or None,
        )
        return 200, ready.model_dump_json(exclude_none=True).encode()


def _runs(engine: Engine) -> bool:
    """Some can stop by themselves."""
    return bool(getattr(engine, "running", True))


def _replica_id() -> str | None:
    """As Serve names it; None where it is not Serve that runs this."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        return str(serve.get_replica_context().replica_tag)
    except RayServeException:
        return None


def refuse_unkept_subject(subject: str | None, *, log: RequestLog | None) -> None:
    """Raises RequestError 422 for a subject that would be neither hashed nor kept."""
    if subject is not None and not (log and log.takes_subjects):
        told = "subject: none is kept here (the recipe's serving.subject_key names no key); leave it out"
        raise RequestError(422, "invalid_request", told, param="subject")
