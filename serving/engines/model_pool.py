"""The versions in the memory of a classification replica: one engine and one model per version."""

from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serving.engines.classify import Prediction, predict_texts
from serving.engines.dynamic_batcher import DynamicBatcher, PassResult, Window
from serving.engines.text_rows import (
    MAX_OFFERED,
    PASSES,
    TextRow,
    cost_of_row,
    pass_costs,
    run_pass,
)
from serving.http.metrics import BATCH_TEXTS, Meter
from serving.hybrid.classifier_queue import HybridQueue, Submit, SubmitEach, failing_together
from serving.version_checks import require_digest
from tailorbird.config.serving import ANSWER_TIMEOUT_S

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedClassifier
    from tailorbird.registry.hybrid_routing import Routing
    from tailorbird.registry.versions import Hybrid, ModelVersion

LINGER_S = 0.003
"""Maximum time that the next pass waits for new requests of clients that have just received a
response."""
WARM_UP = "the first pass prepares kernels"

Predict = Callable[[list[TextRow]], list[Prediction]]
Batcher = DynamicBatcher[TextRow, Prediction]


@dataclass(frozen=True)
class ClassifierEngine:
    """A loaded version and its queue. One version answers a request completely, even if versions
    are swapped."""

    version: "ModelVersion"
    submit: Submit
    """Takes texts or, for a hybrid, the rows of `hybrid_rows`."""
    idle_s: Callable[[], float]  # returns the seconds since the last call, or 0 during a call
    max_length: int  # maximum number of tokens of a text
    routing: "Routing | None" = None  # routing of a hybrid; None for other versions
    unload: Callable[[], None] = lambda: None
    submit_each: SubmitEach | None = None
    """Takes texts, and returns the errors of single texts; None if the texts of a request are
    answered or fail together."""


class ModelPool:
    """A loader of versions into engines. All models run in the single thread of `worker`.

    `load_endpoint` loads a version of an endpoint, which needs neither the thread nor a queue.
    """

    def __init__(
        self,
        *,
        worker: Executor,
        batch_size: int,
        meter: Meter,
        load_endpoint: "Callable[[ModelVersion], ClassifierEngine]",
    ) -> None:
        self._worker = worker
        self._batch_size = batch_size
        self._meter = meter
        self._load_endpoint = load_endpoint

    def load(self, uri: str, digest: str) -> ClassifierEngine:
        """Load a version, run a warm-up pass, and return its engine.

        Files are checked and loaded in the caller's thread. Make one call at a time.
        """
        from tailorbird.models.loading import LoadedClassifier, checked_copy, load_version
        from tailorbird.registry.versions import read_version

        version = read_version(uri)
        require_digest(version, digest=digest)
        if version.endpoint is not None:
            return self._load_endpoint(version)
        if version.hybrid is not None:
            checked_copy(version.pinned)
            return self._load_hybrid(version, version.hybrid)
        loaded = load_version(version)
        assert isinstance(loaded, LoadedClassifier)
        predict_texts(loaded, [WARM_UP], batch_size=self._batch_size)

        def predict(rows: list[TextRow]) -> list[Prediction]:
            texts = [row.text for row in rows]
            return predict_texts(loaded, texts, batch_size=self._batch_size, tokens=_tokens(rows))

        batcher = self._batcher(predict, version.name, version.version, device=_device(loaded))

        def submit(rows: Sequence[str], *, client: str) -> Awaitable[list[Prediction]]:
            return _submit(batcher, [TextRow(loaded, text) for text in rows], client=client)

        return ClassifierEngine(
            version=version, submit=submit, idle_s=batcher.idle_s, max_length=loaded.max_length
        )

    def _load_hybrid(self, version: "ModelVersion", hybrid: "Hybrid") -> ClassifierEngine:
        """Load both parts, each with an engine of its own, and compose them."""
        from tailorbird.registry.versions import read_parts

        read_parts(hybrid)  # before the first part is loaded
        first = self.load(hybrid.first.uri, hybrid.first.digest)
        try:
            second = self.load(hybrid.second.uri, hybrid.second.digest)
        except Exception:
            first.unload()
            raise

        def unload_parts() -> None:
            first.unload()
            second.unload()

        parts = (first, second)
        queue = HybridQueue(
            *(part.submit_each or failing_together(part.submit) for part in parts),
            version=version.version,
            routing=hybrid.routing,
            timeout_s=ANSWER_TIMEOUT_S,
            unload_parts=unload_parts,
        )
        return ClassifierEngine(
            version=version,
            submit=queue.submit,
            idle_s=lambda: min(part.idle_s() for part in parts),
            max_length=max(part.max_length for part in parts),
            routing=hybrid.routing,
            unload=queue.unload,
        )

    def _batcher(self, predict: Predict, *labels: str, device: str) -> Batcher:
        costs = pass_costs(device)

        def run(rows: list[TextRow], max_tokens: int) -> PassResult[Prediction]:
            done = run_pass(
                rows,
                predict=predict,
                batch_size=self._batch_size,
                costs=costs,
                max_tokens=max_tokens,
            )
            self._meter.observe(BATCH_TEXTS, *labels, value=len(done.results))
            return done

        num_rows = max(self._batch_size, min(PASSES * self._batch_size, MAX_OFFERED))
        window = Window(
            rows=num_rows,
            cost=PASSES * costs.alone,
            pass_cost=costs.alone,
            client_cost=costs.share,
        )
        return DynamicBatcher(
            run, executor=self._worker, window=window, full_rows=self._batch_size, linger_s=LINGER_S
        )

    def unload(self, engine: ClassifierEngine) -> None:
        """Release a version that no longer serves, after its last request."""
        engine.unload()


def _submit(batcher: Batcher, rows: list[TextRow], *, client: str) -> Awaitable[list[Prediction]]:
    return batcher.submit([(row, cost_of_row(row)) for row in rows], client=client)


def _tokens(rows: Sequence[TextRow]) -> list[list[int]] | None:
    """Return the tokens of the rows, which a pass has stored, or None if the model has no
    tokenizer."""
    tokens = [row.tokens for row in rows if row.tokens is not None]
    if len(tokens) == len(rows):
        return tokens
    return None


def _device(loaded: "LoadedClassifier[ModelVersion]") -> str:
    if loaded.model is None:
        return "cpu"
    return loaded.model.head.weight.device.type
