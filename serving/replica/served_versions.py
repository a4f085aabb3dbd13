"""The versions that a replica serves: loading, swapping without interruption, and selection by
name."""

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from serving.http.schemas import CHAMPION, RequestError
from serving.replica.config import CHALLENGER, Arm, ReplicaConfig, config_id
from tailorbird.registry.versions import ModelVersion

RETRY_S = 60.0
MAX_RETRY_S = 3600.0
"""First and maximum delay between attempts to load a missing version. The delay doubles after each
attempt."""

_log = logging.getLogger("ray.serve")


class Engine(Protocol):
    """A loaded version that answers requests. The optional attribute `running` is False after the
    engine stopped."""

    @property
    def version(self) -> ModelVersion: ...


EngineT = TypeVar("EngineT", bound=Engine)


class RefusedVersion(NamedTuple):
    """A configured champion that could not be loaded. The previous champion still serves."""

    digest: str
    reason: str


class ServedVersions(Generic[EngineT]):
    """The engines of the champion, the challenger and the other versions, by the names that
    requests use.

    `load` takes a version's URI and digest. `unload` takes an engine that no longer serves.
    """

    def __init__(
        self,
        load: Callable[[str, str], EngineT],
        *,
        unload: Callable[[EngineT], None] = lambda _previous: None,
    ) -> None:
        self._load = load
        self._unload = unload
        self.engines: Mapping[str, EngineT] = {}
        """Engines by name; empty before the first configuration is loaded."""
        self.config: ReplicaConfig | None = None
        """The loaded configuration."""
        self._changes: asyncio.Task[None] | None = None
        self.absent: dict[str, str] = {}
        """Reasons why versions other than the champion are not loaded, by name."""
        self.refused: RefusedVersion | None = None
        self.config_id = ""
        """Id of the last configuration that was loaded or refused."""

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a configuration, then swap the engines. Requests are answered during the load.

        If the first champion cannot be loaded, raise, which makes the replica fail. A later
        champion that cannot be loaded is refused, and the previous one still serves. Later
        configurations are loaded after this method returns, because Serve sends the replica no new
        requests until then.
        """
        config = ReplicaConfig.model_validate(user_config)
        digest = config_id(user_config)
        if self.engines:
            self._changes = asyncio.create_task(
                self._change(config, digest=digest, after=self._changes)
            )
        else:
            self.engines, self.absent = await asyncio.to_thread(self._load_all, config)
            self.config = config
            self.config_id = digest

    async def _change(
        self, config: ReplicaConfig, *, digest: str, after: asyncio.Task[None] | None
    ) -> None:
        """Load and swap after the earlier changes, so that the last configuration is the final
        one."""
        if after is not None:
            with suppress(Exception):  # a failure of an earlier change must not stop this one
                await after
        try:
            engines, absent = await asyncio.to_thread(self._load_all, config)
        except Exception as error:
            self.refused = RefusedVersion(config.champion.digest, str(error))
            self.config_id = digest
            return
        self.refused = None
        self.config = config
        self.config_id = digest
        self._swap(engines, absent)

    def _swap(self, engines: dict[str, EngineT], absent: dict[str, str]) -> None:
        unused = {id(engine): engine for engine in self.engines.values()}
        for engine in engines.values():
            unused.pop(id(engine), None)
        self.engines = engines
        self.absent = absent
        for engine in unused.values():
            self._unload(engine)

    async def keep_retrying(self) -> None:
        """Reload absent and stopped versions periodically until cancelled: storage may have been
        unavailable."""
        wait_s = RETRY_S
        while True:
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, MAX_RETRY_S) if self.absent else RETRY_S
            incomplete = bool(self.absent) or not all(map(_is_running, self.engines.values()))
            if incomplete and (self._changes is None or self._changes.done()):
                self._changes = asyncio.create_task(self._retry())

    async def _retry(self) -> None:
        assert self.config is not None
        try:
            engines, absent = await asyncio.to_thread(self._load_all, self.config)
        except Exception:
            _log.exception(
                "the champion has stopped and cannot be reloaded; the replica tries again later"
            )
            return
        self._swap(engines, absent)

    def _load_all(self, config: ReplicaConfig) -> tuple[dict[str, EngineT], dict[str, str]]:
        """Return the engines by name, and the reasons why other versions are absent.

        Versions that already serve are not loaded again. Raises if the champion cannot be loaded.
        """
        by_digest = {
            engine.version.digest: engine for engine in self.engines.values() if _is_running(engine)
        }
        engines: dict[str, EngineT] = {}
        absent: dict[str, str] = {}
        for name, version in config.versions.items():
            try:
                engines[name] = by_digest.get(version.digest) or self._load(
                    version.uri, version.digest
                )
            except Exception as error:
                if name == CHAMPION:
                    raise
                absent[name] = str(error)
                if self.absent.get(name) != absent[name]:
                    _log.exception(
                        "%s cannot be loaded; the champion serves without it", version.uri
                    )
            else:
                by_digest[version.digest] = engines[name]
        return engines, absent

    @property
    def champion(self) -> EngineT:
        """Return the champion's engine; raise RequestError 503 before one is loaded."""
        if not self.engines:
            raise RequestError(
                503, "not_ready", "the model is still loading; retry when /readyz returns 200"
            )
        return self.engines[CHAMPION]

    def engine_of(self, model: str) -> EngineT:
        """Return the engine for a request's `model`: a served name, the task's name, a version or
        `name@version`.

        Raises RequestError 404 if the model is not served.
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
        message = f"model {model!r} is not served; /v1/models lists the served models"
        raise RequestError(404, "unknown_model", message, param="model", code="model_not_found")

    def assign_arm(self, model: str) -> tuple[EngineT, Arm | None]:
        """Return the engine that answers a request for `model`, and its arm; None if it takes no
        part in an experiment.

        Only requests for `champion` or the name of the task take part. Raises the errors of
        `engine_of`.
        """
        engine = self.engine_of(model)
        if model not in (CHAMPION, engine.version.name):
            return engine, None
        return engine, "champion"

    def draw_shadow(self) -> EngineT | None:
        """Return the challenger's engine for its share of the calls, at random, else None."""
        challenger = self.config.challenger if self.config else None
        if challenger is None or CHALLENGER not in self.engines:
            return None
        if random.random() >= challenger.shadow:
            return None
        return self.engines[CHALLENGER]

    def is_challenger(self, engine: EngineT) -> bool:
        """Return True if the engine is still the challenger's: an experiment may end while its
        requests are queued."""
        return self.engines.get(CHALLENGER) is engine


def _is_running(engine: Engine) -> bool:
    return bool(getattr(engine, "running", True))
