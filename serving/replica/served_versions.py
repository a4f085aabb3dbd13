"""The versions that a replica answers with: loaded, swapped without a gap, selected by name."""

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

from serving.http.schemas import CHAMPION, RequestError
from serving.replica.config import ReplicaConfig, config_id
from serving.replica.experiment import CHALLENGER, Arm
from tailorbird.registry.versions import ModelVersion

RETRY_S, MAX_RETRY_S = 60.0, 3600.0
"""Delay until a version that could not be loaded is tried again; it doubles each time up to the second."""

_log = logging.getLogger("ray.serve")


class Engine(Protocol):
    """Answers for one version; may have `running`, False once it has stopped by itself."""

    @property
    def version(self) -> ModelVersion: ...


EngineT = TypeVar("EngineT", bound=Engine)


class RefusedVersion(NamedTuple):
    """A champion that could not be loaded, so that the former one still serves."""

    digest: str
    reason: str


class ServedVersions(Generic[EngineT]):
    """The engines of the champion, of the challenger and of the other versions, by the names that requests use.

    `load` takes a version's URI and digest; `unload` takes an engine that no longer serves.
    """

    def __init__(
        self, load: Callable[[str, str], EngineT], *, unload: Callable[[EngineT], None] = lambda _former: None
    ) -> None:
        self._load = load
        self._unload = unload
        self.engines: Mapping[str, EngineT] = {}
        """The engines that answer, by name; none before the first configuration is loaded."""
        self._config: ReplicaConfig | None = None
        self._changes: asyncio.Task[None] | None = None
        self.absent: dict[str, str] = {}
        """Why versions other than the champion are not loaded, by name."""
        self.refused: RefusedVersion | None = None
        self.config_id = ""
        """Of the configuration that was loaded or refused last."""

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a configuration, then swap; requests are answered meanwhile.

        If the first champion cannot be loaded, this raises and the replica fails with Serve's status. A later one is
        refused, and the former still serves. Later ones are loaded after this has returned: Serve sends the replica no
        new request before, and would make them wait if it is the only one.
        """
        config, digest = ReplicaConfig.model_validate(user_config), config_id(user_config)
        if self.engines:
            self._changes = asyncio.create_task(self._change(config, digest=digest, after=self._changes))
        else:
            self.engines, self.absent = await asyncio.to_thread(self._load_all, config)
            self._config, self.config_id = config, digest

    async def _change(self, config: ReplicaConfig, *, digest: str, after: asyncio.Task[None] | None) -> None:
        """Load and swap once the changes before are done, so that the last configuration serves in the end."""
        if after is not None:
            await after
        try:
            engines, absent = await asyncio.to_thread(self._load_all, config)
        except Exception as error:
            self.refused, self.config_id = RefusedVersion(config.champion.digest, str(error)), digest
            return
        self.refused, self._config, self.config_id = None, config, digest
        self._swap(engines, absent)

    def _swap(self, engines: dict[str, EngineT], absent: dict[str, str]) -> None:
        former, self.engines, self.absent = self.engines, engines, absent
        kept = {id(engine) for engine in engines.values()}
        for engine in {id(engine): engine for engine in former.values() if id(engine) not in kept}.values():
            self._unload(engine)

    async def keep_retrying(self) -> None:
        """Load again what is absent or has stopped, until cancelled: the storage may have been the fault."""
        wait_s = RETRY_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RETRY_S) if self.absent else RETRY_S
            incomplete = bool(self.absent) or not all(map(_is_running, self.engines.values()))
            if incomplete and (self._changes is None or self._changes.done()):
                self._changes = asyncio.create_task(self._retry())

    async def _retry(self) -> None:
        assert self._config is not None
        self._swap(*await asyncio.to_thread(self._load_all, self._config))

    def _load_all(self, config: ReplicaConfig) -> tuple[dict[str, EngineT], dict[str, str]]:
        """Return the engines by name, those that serve already not loaded again, and why others are absent; raises if
        the champion cannot be loaded."""
        by_digest = {engine.version.digest: engine for engine in self.engines.values() if _is_running(engine)}
        engines: dict[str, EngineT] = {}
        absent: dict[str, str] = {}
        for name, version in config.versions.items():
            try:
                engines[name] = by_digest.get(version.digest) or self._load(version.uri, version.digest)
            except Exception as error:
                if name == CHAMPION:
                    raise
                absent[name] = str(error)
                if self.absent.get(name) != absent[name]:
                    _log.exception("%s cannot be loaded, the champion serves without it", version.uri)
            else:
                by_digest[version.digest] = engines[name]
        return engines, absent

    @property
    def champion(self) -> EngineT:
        """Return the champion's engine; raises RequestError 503 while the first is being loaded."""
        if not self.engines:
            raise RequestError(503, "not_ready", "the model is still being loaded; ask /readyz")
        return self.engines[CHAMPION]

    @property
    def verdict(self) -> str | None:
        """Return the sentence of the verdict that chose the champion."""
        return None if self._config is None else self._config.verdict

    def engine_of(self, model: str) -> EngineT:
        """Return the engine of a request's `model`: a name of ours, the task's name, a version or `name@version`.

        Raises RequestError 404 for others.
        """
        champion = self.champion
        if model in self.engines:
            return self.engines[model]
        if model == champion.version.name:
            return champion
        for engine in self.engines.values():
            version = engine.version
            if model in (version.version, f"{version.name}@{version.version}"):
                return engine
        message = f"no model {model!r} here; /v1/models says what serves"
        raise RequestError(404, "unknown_model", message, param="model", code="model_not_found")

    def assign_arm(self, model: str, *, unit: str) -> tuple[EngineT, Arm | None]:
        """Return the engine that answers a request for `model`, and the arm of the experiment; `unit` is the subject,
        else the request's id. Raises as `engine_of`.

        Requests for the champion, or by the task's name, take part in an experiment; those for other models do not.
        """
        engine = self.engine_of(model)
        if model not in (CHAMPION, engine.version.name):
            return engine, None
        challenger = self.challenger_for("canary", unit=unit)
        return (engine, "champion") if challenger is None else (challenger, "canary")

    def challenger_for(self, arm: Literal["canary", "shadow"], *, unit: str) -> EngineT | None:
        """Return the challenger's engine if `unit` is in the arm."""
        challenger = None if self._config is None else self._config.challenger
        included = challenger is not None and challenger.includes(arm, unit)
        return self.engines.get(CHALLENGER) if included else None

    def is_challenger(self, engine: EngineT) -> bool:
        """Return whether the engine is still the challenger's: a waiting request may be older than the experiment."""
        return self.engines.get(CHALLENGER) is engine


def _is_running(engine: Engine) -> bool:
    return bool(getattr(engine, "running", True))
