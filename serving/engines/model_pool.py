"""What a classification replica holds in memory: an engine a version, weights that several share once."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from serving.engines.classify import Prediction, predict_hybrid, predict_shared, predict_texts
from serving.engines.dynamic_batcher import DynamicBatcher
from serving.http.metrics import BATCH_TEXTS, Meter
from serving.version_checks import require_digest

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedHybrid, LoadedModel
    from tailorbird.models.shared_encoder import SharedEncoder
    from tailorbird.registry.routing import Routing
    from tailorbird.registry.versions import ModelVersion

# How long the next pass waits, at most, for the clients that were answered just now to ask again.
LINGER_S = 0.003
# Texts taken from the queue at once, in forward passes: the more there are to sort by length, the less is padding.
PASSES = 4
WARM_UP = "the first pass prepares kernels"
SHARED = "shared"
"""The version of a metric about a pass in which rows of several may be."""


@dataclass(frozen=True)
class ClassifierEngine:
    """A loaded version behind a queue: a request is answered by one version, whatever is swapped meanwhile."""

    loaded: "LoadedModel[ModelVersion] | LoadedHybrid"
    submit: Callable[[Sequence[Any]], Awaitable[list[Prediction]]]
    """Predictions of texts, in order; of a hybrid's `answer.hybrid_rows`."""
    idle_s: Callable[[], float]
    """Seconds since there was anything in its queue; 0 while there is."""
    routing: "Routing | None" = None
    """A hybrid's; None where one model answers everything."""

    @property
    def version(self) -> "ModelVersion":
        return self.loaded.version


class _Unload(NamedTuple):
    """The last row of a version: what was asked of it stands before it in the queue."""

    loaded: Any


@dataclass
class _SharedBase:
    """A base model, its queue, and how many versions are over it."""

    encoder: "SharedEncoder"
    batcher: DynamicBatcher
    num_versions: int = 0


class ModelPool:
    """Loads versions into engines; all models run on the one thread of `worker`."""

    def __init__(self, *, worker: Executor, batch_size: int, meter: Meter) -> None:
        self._worker = worker
        self._batch_size = batch_size
        self._meter = meter
        self._shared: dict[tuple[str, str], _SharedBase] = {}
        self._leaving: set[asyncio.Future[Any]] = set()

    def load(self, uri: str, digest: str) -> ClassifierEngine:
        """The version's engine, warm. Files are fetched and read on the caller's thread; one call at a time."""
        from tailorbird.models.loading import LoadedHybrid, checked_copy, load_served
        from tailorbird.registry.versions import read_version, shares_base

        version = read_version(uri)
        require_digest(version, digest=digest)
        if shares_base(version):
            checked_copy(uri)
            return self._sharing(version)
        loaded = load_served(uri)
        if isinstance(loaded, LoadedHybrid):
            for part in (loaded.incumbent, loaded.candidate):
                predict_texts(part, [WARM_UP], batch_size=self._batch_size)
            queue = self._queue(partial(predict_hybrid, loaded), version.name, version.version)
            return ClassifierEngine(loaded, queue.submit, queue.idle_s, loaded.routing)
        predict_texts(loaded, [WARM_UP], batch_size=self._batch_size)
        queue = self._queue(partial(predict_texts, loaded), version.name, version.version)
        return ClassifierEngine(loaded, queue.submit, queue.idle_s)

    def _sharing(self, version: "ModelVersion") -> ClassifierEngine:
        """A head or an adapter: it comes in between two passes of those that serve."""
        from tailorbird.models.shared_encoder import SharedEncoder

        key = (version.base_model, version.dtype)
        shared = self._shared.get(key)
        if shared is None:
            encoder = SharedEncoder(version.base_model, dtype=version.dtype)
            shared = _SharedBase(encoder, self._queue(partial(_predict_or_unload, encoder), version.name, SHARED))
        loaded = self._worker.submit(shared.encoder.add, version).result()
        try:
            self._worker.submit(predict_texts, loaded, [WARM_UP], batch_size=self._batch_size).result()
        except Exception:
            self._worker.submit(shared.encoder.remove, loaded).result()
            raise
        self._shared[key] = shared
        shared.num_versions += 1

        async def submit(texts: Sequence[str]) -> list[Prediction]:
            return await shared.batcher.submit([(loaded, text) for text in texts])

        return ClassifierEngine(loaded, submit, shared.batcher.idle_s)

    def _queue(self, predict: Callable[..., list[Any]], *labels: str) -> DynamicBatcher:
        def run(rows: list[Any]) -> list[Any]:
            self._meter.observe(BATCH_TEXTS, *labels, value=len(rows))
            return predict(rows, batch_size=self._batch_size)

        return DynamicBatcher(run, executor=self._worker, max_rows=PASSES * self._batch_size, linger_s=LINGER_S)

    def unload(self, engine: ClassifierEngine) -> None:
        """Gives back what a version that no longer serves held, after the answers that it still owes."""
        from tailorbird.registry.versions import shares_base

        version, loaded = engine.version, engine.loaded
        shared = self._shared.get((version.base_model, version.dtype))
        if shared is None or not shares_base(version):
            return
        self._leaving.add(leaving := asyncio.ensure_future(shared.batcher.submit([_Unload(loaded)])))
        leaving.add_done_callback(self._leaving.discard)
        shared.num_versions -= 1
        if shared.num_versions == 0:
            del self._shared[version.base_model, version.dtype]


def _predict_or_unload(encoder: "SharedEncoder", rows: list[Any], *, batch_size: int) -> list[Any]:
    asked = [row for row in rows if not isinstance(row, _Unload)]
    try:
        predictions = iter(predict_shared(encoder, asked, batch_size=batch_size) if asked else [])
    finally:
        for row in rows:
            if isinstance(row, _Unload):
                encoder.remove(row.loaded)
    return [None if isinstance(row, _Unload) else next(predictions) for row in rows]
