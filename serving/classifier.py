"""A replica: holds one registered version, batches the texts of many requests through it, changes it without a gap."""

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes.schema import ServingSection
from serving.answer import Prediction, hybrid_rows, predict_hybrid, predict_texts, scores_by_class
from serving.batch import Batcher
from serving.http import ASGIApp, Route, http_app
from serving.protocol import CHAMPION, Models, Ready, RequestError, Served, parse_request, write_answer

if TYPE_CHECKING:
    from models.decide import Routing
    from models.load import LoadedHybrid, LoadedModel
    from models.registry import ModelVersion

# How long the next pass waits, at most, for the clients that were answered just now to ask again.
LINGER_S = 0.003
# Texts taken from the queue at once, in forward passes: the more there are to sort by length, the less is padding.
PASSES = 4


@dataclass(frozen=True)
class Engine:
    """A loaded version with its own queue: a request is answered by one version, whatever is swapped meanwhile."""

    loaded: "LoadedModel[ModelVersion] | LoadedHybrid"
    batcher: Batcher
    routing: "Routing | None"
    """A hybrid's; None where one model answers everything."""


class Classifier:
    """Serve deployment. `user_config` names the version: `{"version_uri": ..., "digest": ...}`."""

    def __init__(self, home: str, section: dict[str, Any]) -> None:
        import torch

        _require_shipped_code()
        self._home = home
        self._section = ServingSection.model_validate(section)
        torch.set_num_threads(self._section.cpus_per_replica)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._engine: Engine | None = None
        self._refused: tuple[str, str] | None = None

    def __serve_build_asgi_app__(self) -> ASGIApp:
        routes = {
            "/v1/classify": Route("POST", self._classify),
            "/v1/models": Route("GET", self._models),
            "/healthz": Route("GET", self._healthz),
            "/readyz": Route("GET", self._readyz),
        }
        return http_app(routes, max_body_bytes=self._section.max_body_bytes)

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Loads the version beside the one that serves, then swaps; requests go on meanwhile.

        The first version that cannot be loaded fails the replica, and Serve's status says why. A later one is refused:
        the former serves on, and /readyz names the refused one.
        """
        uri, digest = user_config["version_uri"], user_config["digest"]
        try:
            engine = await asyncio.to_thread(_load, uri, digest, self._worker, self._section.max_batch_size)
        except Exception as error:
            if self._engine is None:
                raise
            self._refused = (digest, str(error))
            return
        self._engine, self._refused = engine, None

    async def _classify(self, body: bytes, request_id: str) -> tuple[int, bytes]:
        engine = self._loaded_engine()
        request = parse_request(body, max_texts=self._section.max_texts)
        version = engine.loaded.version
        if request.model not in (CHAMPION, version.name, version.version, f"{version.name}@{version.version}"):
            raise RequestError(404, "unknown_model", f"no model {request.model!r} here; /v1/models says what serves")
        rows = request.texts if engine.routing is None else hybrid_rows(engine.routing, request)
        predictions = await engine.batcher.submit(rows)
        results: list[dict[str, Any]] = [{"label": label, "score": score} for label, score, _, _ in predictions]
        if engine.routing is not None:
            for result, prediction in zip(results, predictions, strict=True):
                result["answered_by"] = prediction.answered_by
        if request.scores:
            for result, prediction in zip(results, predictions, strict=True):
                result["scores"] = scores_by_class(engine.loaded, prediction)
        return 200, write_answer(
            {"request_id": request_id, "model": version.name, "version": version.version, "results": results}
        )

    async def _models(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        loaded = self._loaded_engine().loaded
        version = loaded.version
        served = Served(
            id=CHAMPION,
            name=version.name,
            version=version.version,
            kind=version.kind,
            digest=version.digest,
            classes=list(loaded.classes),
        )
        return 200, Models(models=[served]).model_dump_json().encode()

    async def _healthz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, b'{"status":"up"}'

    async def _readyz(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        refused, reason = self._refused or (None, None)
        if self._engine is None:
            return 503, Ready(status="loading").model_dump_json(exclude_none=True).encode()
        version = self._engine.loaded.version
        ready = Ready(status="ready", version=version.version, digest=version.digest, refused=refused, reason=reason)
        return 200, ready.model_dump_json(exclude_none=True).encode()

    def _loaded_engine(self) -> Engine:
        if self._engine is None:
            raise RequestError(503, "not_ready", "the model is still being loaded; ask /readyz")
        return self._engine


def _require_shipped_code() -> None:
    """Raises where the node's installed code runs instead of the code that the application ships.

    Ray searches the folder in which its head was started first: with our packages in it, it hides the shipped ones.
    """
    import ray

    shipped = ray.get_runtime_context().runtime_env.get("working_dir")
    if shipped and not Path(__file__).resolve().is_relative_to(Path.cwd().resolve()):
        raise RuntimeError(f"{__file__} was imported, not {shipped}: start Ray in a folder without our packages")


def _load(uri: str, digest: str, worker: Executor, batch_size: int) -> Engine:
    from models.load import LoadedHybrid, load_served

    loaded = load_served(uri)
    if loaded.version.digest != digest:
        raise ValueError(
            f"{uri} has digest {loaded.version.digest}, not {digest} that was evaluated; deploy the registered version"
        )
    run: Callable[[list[Any]], list[Prediction]]
    if isinstance(loaded, LoadedHybrid):
        models, routing = [loaded.incumbent, loaded.candidate], loaded.routing
        run = partial(predict_hybrid, loaded, batch_size=batch_size)
    else:
        models, routing = [loaded], None
        run = partial(predict_texts, loaded, batch_size=batch_size)
    for model in models:
        predict_texts(model, ["the first pass prepares kernels"], batch_size=batch_size)
    return Engine(loaded, Batcher(run, executor=worker, max_rows=PASSES * batch_size, linger_s=LINGER_S), routing)
