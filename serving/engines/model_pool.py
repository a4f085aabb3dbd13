"""The versions in the memory of a classification replica: one engine per version, one copy of shared weights."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from serving.engines.classify import Prediction, predict_hybrid, predict_shared, predict_texts
from serving.engines.dynamic_batcher import DynamicBatcher
from serving.http.metrics import BATCH_TEXTS, Meter
from serving.version_checks import require_digest

if TYPE_CHECKING:
    from tailorbird.models.bag_of_words import BagOfWords
    from tailorbird.models.loading import LoadedClassifier, LoadedHybrid
    from tailorbird.models.shared_encoder import SharedEncoder
    from tailorbird.registry.routing import Routing
    from tailorbird.registry.versions import ModelVersion

LINGER_S = 0.003
"""Maximum time that the next pass waits for new requests of clients that have just received a response."""
PASSES = 4  # forward passes per call; sorting more texts by length reduces padding
WARM_UP = "the first pass prepares kernels"
SHARED = "shared"  # version label in metrics of passes over several versions


@dataclass(frozen=True)
class ClassifierEngine:
    """A loaded version and its queue. One version answers a request completely, even if versions are swapped."""

    loaded: "LoadedClassifier[ModelVersion] | LoadedHybrid"
    submit: Callable[[Sequence[Any]], Awaitable[list[Prediction]]]
    """Returns the predictions of texts (for a hybrid, of `hybrid_rows`), in order."""
    idle_s: Callable[[], float]  # returns the seconds since the last call, or 0 during a call
    routing: "Routing | None" = None  # routing of a hybrid; None for other versions

    @property
    def version(self) -> "ModelVersion":
        return self.loaded.version


class _SharedRow(NamedTuple):
    """A text for a version on a shared encoder. A row without a text is a request to unload the version."""

    loaded: "LoadedClassifier[ModelVersion]"
    text: str | None


@dataclass
class _SharedBase:
    """A shared base model, its queue, and the number of versions that use it."""

    encoder: "SharedEncoder"
    batcher: "DynamicBatcher[_SharedRow, Prediction | None]"
    num_versions: int = 0


class ModelPool:
    """A loader of versions into engines. All models run in the single thread of `worker`."""

    def __init__(self, *, worker: Executor, batch_size: int, meter: Meter) -> None:
        self._worker = worker
        self._batch_size = batch_size
        self._meter = meter
        self._shared: dict[tuple[str, str], _SharedBase] = {}
        self._unloading: set[asyncio.Future[list[Prediction | None]]] = set()

    def load(self, uri: str, digest: str) -> ClassifierEngine:
        """Load a version, run a warm-up pass, and return its engine.

        Files are checked, and base models and bags of words are loaded, in the caller's thread. Make one call at a
        time.
        """
        from tailorbird.models.loading import (
            LoadedClassifier,
            LoadedHybrid,
            checked_copy,
            load_bag_of_words,
            load_model,
        )
        from tailorbird.registry.versions import read_version, shares_base

        version = read_version(uri)
        require_digest(version, digest=digest)
        if shares_base(version):
            folder = checked_copy(uri)
            return self._load_shared(version, folder=folder, bag=load_bag_of_words(folder, kind=version.kind))
        loaded = load_model(uri)
        if isinstance(loaded, LoadedHybrid):
            for part in (loaded.incumbent, loaded.candidate):
                predict_texts(part, [WARM_UP], batch_size=self._batch_size)
            hybrid = self._batcher(partial(predict_hybrid, loaded), version.name, version.version)
            return ClassifierEngine(loaded, hybrid.submit, hybrid.idle_s, loaded.routing)
        assert isinstance(loaded, LoadedClassifier)
        predict_texts(loaded, [WARM_UP], batch_size=self._batch_size)
        batcher = self._batcher(partial(predict_texts, loaded), version.name, version.version)
        return ClassifierEngine(loaded, batcher.submit, batcher.idle_s)

    def _load_shared(self, version: "ModelVersion", *, folder: Path, bag: "BagOfWords | None") -> ClassifierEngine:
        """Add a head or an adapter to the shared encoder, between two passes of the served versions."""
        from tailorbird.models.shared_encoder import SharedEncoder

        key = (version.base_model, version.dtype)
        shared = self._shared.get(key)
        if shared is None:
            encoder = SharedEncoder(version.base_model, dtype=version.dtype)
            shared = _SharedBase(encoder, self._batcher(partial(_predict_or_unload, encoder), version.name, SHARED))
        loaded = self._worker.submit(shared.encoder.add, version, folder=folder, bag=bag).result()
        try:
            self._worker.submit(predict_texts, loaded, [WARM_UP], batch_size=self._batch_size).result()
        except Exception:
            self._worker.submit(shared.encoder.remove, loaded).result()
            raise
        self._shared[key] = shared
        shared.num_versions += 1

        async def submit(texts: Sequence[str]) -> list[Prediction]:
            predictions = await shared.batcher.submit([_SharedRow(loaded, text) for text in texts])
            return [prediction for prediction in predictions if prediction is not None]

        return ClassifierEngine(loaded, submit, shared.batcher.idle_s)

    def _batcher(self, predict: Callable[..., list[Any]], *labels: str) -> "DynamicBatcher[Any, Any]":
        def run(rows: list[Any]) -> list[Any]:
            self._meter.observe(BATCH_TEXTS, *labels, value=len(rows))
            return predict(rows, batch_size=self._batch_size)

        return DynamicBatcher(run, executor=self._worker, max_rows=PASSES * self._batch_size, linger_s=LINGER_S)

    def unload(self, engine: ClassifierEngine) -> None:
        """Release a version that no longer serves, after the requests in its queue."""
        from tailorbird.registry.versions import shares_base

        version = engine.version
        shared = self._shared.get((version.base_model, version.dtype))
        if shared is None or not shares_base(version):
            return
        last = _SharedRow(cast("LoadedClassifier[ModelVersion]", engine.loaded), None)
        unloading = asyncio.ensure_future(shared.batcher.submit([last]))  # after the version's rows in the queue
        self._unloading.add(unloading)
        unloading.add_done_callback(self._unloading.discard)
        shared.num_versions -= 1
        if shared.num_versions == 0:
            del self._shared[version.base_model, version.dtype]


def _predict_or_unload(encoder: "SharedEncoder", rows: list[_SharedRow], *, batch_size: int) -> list[Prediction | None]:
    texts = [(row.loaded, row.text) for row in rows if row.text is not None]
    try:
        predictions = iter(predict_shared(encoder, texts, batch_size=batch_size) if texts else [])
    finally:
        for row in rows:
            if row.text is None:
                encoder.remove(row.loaded)
    return [None if row.text is None else next(predictions) for row in rows]
