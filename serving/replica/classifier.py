"""A replica of a classifier, which batches the texts of concurrent requests."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from serving.endpoint.loading import endpoint_limits, load_classifier
from serving.engines.classify import Prediction, hybrid_rows, scores_by_class
from serving.engines.model_pool import ClassifierEngine, ModelPool
from serving.engines.text_rows import estimated_length
from serving.http.asgi import ASGIApp, Route
from serving.http.metrics import TEXTS, Meter, record_version
from serving.http.schemas import ClassifyRequest, parse_request, write_answer
from serving.limits import admit, client_name
from serving.replica.base import (
    Replica,
    RequestContext,
    configure_process,
)
from serving.replica.config import CHALLENGER
from serving.replica.served_versions import ServedVersions
from serving.replica.shadow import QUIET_S, ShadowRunner
from serving.request_log.schema import top_classes
from tailorbird.config.serving import MAX_TEXT_BYTES, MAX_TEXTS
from tailorbird.registry.versions import ModelVersion, calls_endpoint

SHADOW_TEXTS = 4  # texts per shadow pass; a request that arrives during the pass waits for its end


class Classifier:
    """Serve deployment of classifiers; `config` is a ServingConfig as JSON, `user_config` a
    ReplicaConfig."""

    def __init__(self, task_uri: str, config: str) -> None:
        self._config = configure_process(config)
        worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        meter = Meter()
        limits = endpoint_limits(self._config)
        load_endpoint = partial(load_classifier, limits=limits, meter=meter)
        pool = ModelPool(
            worker=worker,
            batch_size=self._config.batch_size("classification"),
            meter=meter,
            load_endpoint=load_endpoint,
        )
        versions = ServedVersions(pool.load, unload=pool.unload)
        self._replica = Replica(
            versions, task="classification", task_uri=task_uri, config=self._config, meter=meter
        )
        self._shadows = ShadowRunner(self._is_quiet)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        routes = {
            "/v1/classify": Route(
                "POST", self._classify, watched=self._has_endpoint, scopes=("answer",)
            ),
        }
        return self._replica.asgi_app(routes, page="classify")

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Load a configuration. The previous engine answers the requests in its queue."""
        await self._replica.reconfigure(user_config)

    async def _classify(self, body: bytes, request_id: str) -> tuple[int, bytes]:
        context = self._replica.begin("classify", request_id)
        request = parse_request(body, max_texts=MAX_TEXTS, max_text_bytes=MAX_TEXT_BYTES)
        engine, context = self._replica.assign(context, model=request.model)
        answer = await self._answer(request, engine=engine, context=context)
        shadow = self._replica.shadow(context)
        if shadow is not None:
            engine, context = shadow
            run = partial(self._run_shadow, request, engine=engine, context=context)
            self._shadows.add(run, num_bytes=len(body), caller=context.caller)
        return 200, answer

    async def _answer(
        self, request: ClassifyRequest, *, engine: ClassifierEngine, context: RequestContext
    ) -> bytes:
        """Return the answer of one engine as JSON, and log its rows."""
        version = engine.version
        record_version(version)
        num_tokens = sum(
            estimated_length(text, max_length=engine.max_length) for text in request.texts
        )
        admit(texts=len(request.texts), tokens=num_tokens)
        self._replica.charge(texts=len(request.texts), tokens=num_tokens)
        predictions = await engine.submit(_rows(request, engine=engine), client=client_name())
        self._replica.meter.count(TEXTS, version.name, version.version, by=len(predictions))
        await self._log(request, predictions, engine=engine, context=context)
        results = [_result(prediction, version=version) for prediction in predictions]
        for result, prediction in zip(results, predictions, strict=True):
            self._replica.meter.count_part(
                version, prediction.answered_by, is_fallback=prediction.is_fallback
            )
            if request.scores and prediction.scores.size:
                result["scores"] = scores_by_class(prediction, classes=version.classes)
        fields = {
            "request_id": context.request_id,
            "model": version.name,
            "version": version.version,
        }
        return await write_answer(fields, results=results)

    async def _run_shadow(
        self, request: ClassifyRequest, *, engine: ClassifierEngine, context: RequestContext
    ) -> None:
        """Log the challenger's answer. The texts are classified a few at a time, while the other
        models are idle.

        The passes run in the thread that all models share. In a separate thread they would slow
        down the champion's passes on the same core.
        """
        rows = _rows(request, engine=engine)
        predictions = list[Prediction]()
        for start in range(0, len(rows), SHADOW_TEXTS):
            await self._shadows.quiet()
            if not self._replica.versions.is_challenger(engine):
                return
            predictions += await engine.submit(
                rows[start : start + SHADOW_TEXTS], client=client_name()
            )
        await self._log(request, predictions, engine=engine, context=context)

    def _has_endpoint(self) -> bool:
        """Return True if a served version sends requests to an endpoint, which end if the client
        disconnects."""
        return any(
            calls_endpoint(engine.version) for engine in self._replica.versions.engines.values()
        )

    def _is_quiet(self) -> bool:
        """Return True if all models except the challenger have been idle for `QUIET_S`."""
        engines = self._replica.versions.engines
        return all(
            engine.idle_s() >= QUIET_S for name, engine in engines.items() if name != CHALLENGER
        )

    async def _log(
        self,
        request: ClassifyRequest,
        predictions: list[Prediction],
        *,
        engine: ClassifierEngine,
        context: RequestContext,
    ) -> None:
        log = self._replica.log
        if log is None:
            return
        entry = context.log_entry(engine.version)
        attributes = request.attributes
        texts = await self._replica.loggable(request.texts)
        by_row = attributes if isinstance(attributes, list) else [attributes] * len(predictions)
        log.answers.add(
            [
                entry(
                    row=row,
                    attributes=by_row[row],
                    label=prediction.label,
                    score=prediction.known_score,
                    answered_by=prediction.answered_by,
                    reported_model=prediction.reported_model,
                    fallback=None if prediction.answered_by is None else prediction.is_fallback,
                    top=top_classes(prediction.classes, prediction.scores),
                    text=text,
                )
                for row, (text, prediction) in enumerate(zip(texts, predictions, strict=True))
            ]
        )


def _rows(request: ClassifyRequest, *, engine: ClassifierEngine) -> list[Any]:
    """Return the texts in the form that the engine's `submit` accepts."""
    if engine.routing is None:
        return list(request.texts)
    return list(hybrid_rows(engine.routing, request))


def _result(prediction: Prediction, *, version: ModelVersion) -> dict[str, object]:
    """Return the fields of the response for one text."""
    result: dict[str, object] = {
        "label": version.typed_label(prediction.label),
        "score": prediction.known_score,
    }
    if prediction.answered_by is not None:
        result["answered_by"] = prediction.answered_by
    if prediction.is_fallback:
        result["fallback"] = True
    if prediction.reported_model is not None:
        result["reported_model"] = prediction.reported_model
    return result
