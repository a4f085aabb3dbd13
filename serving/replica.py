"""What every replica is, whatever it answers: one version, changed without a gap, and told of by the same routes."""

import asyncio
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from recipes.schema import ServingSection
from serving.http import ASGIApp, Route, http_app
from serving.keys import Door, read_subject_key
from serving.log import RequestLog
from serving.protocol import CHAMPION, Models, Ready, RequestError, Served

if TYPE_CHECKING:
    from models.registry import ModelVersion


class Engine(Protocol):
    """What answers for one version."""

    @property
    def version(self) -> "ModelVersion": ...


EngineT = TypeVar("EngineT", bound=Engine)


class Replica(Generic[EngineT]):
    """The engine that answers, and the version that was refused last.

    `load` takes a version's URI and its digest; `retire` an engine that no longer serves.
    """

    def __init__(
        self,
        load: Callable[[str, str], EngineT],
        *,
        section: ServingSection,
        retire: Callable[[EngineT], None] = lambda _former: None,
    ) -> None:
        self._load = load
        self._retire = retire
        self._section = section
        self._door = Door(section.api_keys) if section.api_keys else None
        self.log: RequestLog | None = None
        if section.request_log:
            key = read_subject_key(section.subject_key) if section.subject_key else None
            self.log = RequestLog(section.request_log, subject_key=key, texts=section.log_texts)
        self._watches: list[asyncio.Task[None]] = []
        self._engine: EngineT | None = None
        self._refused: tuple[str, str] | None = None
        self._changes: asyncio.Task[None] | None = None

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Loads the version beside the one that serves, then swaps; requests go on meanwhile.

        The first version that cannot be loaded fails the replica, and Serve's status says why. A later one is refused:
        the former serves on, and /readyz names the refused one. Later ones are loaded after this has returned: while it
        runs, Serve sends the replica nothing new, and where it is the only one, requests wait.
        """
        uri, digest = user_config["version_uri"], user_config["digest"]
        if not self._watches:
            watched = [self._door.keep_current()] if self._door else []
            watched += [self.log.keep_writing()] if self.log else []
            self._watches = [asyncio.create_task(watch) for watch in watched]
        if self._engine is None:
            self._engine = await asyncio.to_thread(self._load, uri, digest)
        else:
            self._changes = asyncio.create_task(self._change(uri, digest, after=self._changes))

    async def _change(self, uri: str, digest: str, *, after: asyncio.Task[None] | None) -> None:
        """The version asked for last is the one that serves in the end."""
        if after is not None:
            await after
        former = self.engine
        if former.version.digest == digest:
            self._refused = None
            return
        try:
            self._engine = await asyncio.to_thread(self._load, uri, digest)
        except Exception as error:
            self._refused = (digest, str(error))
            return
        self._refused = None
        self._retire(former)

    @property
    def engine(self) -> EngineT:
        """The one that answers now; RequestError 503 where the first is still being loaded."""
        if self._engine is None:
            raise RequestError(503, "not_ready", "the model is still being loaded; ask /readyz")
        return self._engine

    def asgi_app(self, routes: dict[str, Route]) -> ASGIApp:
        """The replica's routes and those given, behind the door where there is one."""
        return http_app(
            routes | self._routes(),
            max_body_bytes=self._section.max_body_bytes,
            admit=self._door.admit if self._door else None,
            on_shutdown=self.log.close if self.log else None,
        )

    def _routes(self) -> dict[str, Route]:
        """What a replica tells of itself."""
        return {
            "/v1/models": Route("GET", self._models),
            "/healthz": Route("GET", self._healthz, open=True),
            "/readyz": Route("GET", self._readyz, open=True),
        }

    async def _models(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        version = self.engine.version
        served = Served(
            id=CHAMPION,
            created=int(datetime.fromisoformat(version.created_at).timestamp()),
            name=version.name,
            version=version.version,
            kind=version.kind,
            digest=version.digest,
            classes=list(version.classes),
        )
        return 200, Models(data=[served]).model_dump_json().encode()

    async def _healthz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, b'{"status":"up"}'

    async def _readyz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        if self._engine is None:
            return 503, Ready(status="loading").model_dump_json(exclude_none=True).encode()
        refused, reason = self._refused or (None, None)
        version = self._engine.version
        ready = Ready(status="ready", version=version.version, digest=version.digest, refused=refused, reason=reason)
        return 200, ready.model_dump_json(exclude_none=True).encode()


def refuse_other_model(given: str, *, version: "ModelVersion") -> None:
    """Raises RequestError 404 for a request of another model than the one that serves."""
    if given not in (CHAMPION, version.name, version.version, f"{version.name}@{version.version}"):
        raise RequestError(
            404,
            "unknown_model",
            f"no model {given!r} here; /v1/models says what serves",
            param="model",
            code="model_not_found",
        )


def refuse_unkept_subject(subject: str | None, *, log: RequestLog | None) -> None:
    """Raises RequestError 422 for a subject that would be neither hashed nor kept."""
    if subject is not None and not (log and log.takes_subjects):
        told = "subject: none is kept here (the recipe's serving.subject_key names no key); leave it out"
        raise RequestError(422, "invalid_request", told, param="subject")


def require_digest(version: "ModelVersion", *, digest: str) -> None:
    """Raises where a version is not the one that was evaluated."""
    if version.digest != digest:
        raise ValueError(
            f"{version.uri} has digest {version.digest}, not {digest} that was evaluated; deploy the registered version"
        )


def require_shipped_code() -> None:
    """Raises where the node's installed code runs instead of the code that the application ships.

    Ray searches the folder in which its head was started first: with our packages in it, it hides the shipped ones.
    """
    import ray

    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    if shipped and not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"{__file__} was imported, not {shipped}: start Ray in a folder without our packages")
