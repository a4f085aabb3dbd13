"""A replica of a classifier: batches the texts of many requests through the version that it holds."""

import asyncio
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

from serving.batch_jobs.routes import BatchRoutes
from serving.engines.classify import Prediction, classes_of, hybrid_rows, scores_by_class
from serving.engines.model_pool import ClassifierEngine, ModelPool
from serving.http.asgi import HTML, ASGIApp, Route, caller
from serving.http.metrics import TEXTS, Meter, record_version
from serving.http.schemas import CHAMPION, PRETRAINED, ClassifyRequest, parse_request, write_answer
from serving.pages.render import render_page
from serving.replica.base import Replica, refuse_unkept_subject
from serving.replica.experiment import CHALLENGER, QUIET_S, Arm, ShadowRunner
from serving.request_log.log import RequestLog
from serving.request_log.schema import LogEntry
from serving.request_log.writer import utc_now
from serving.version_checks import require_shipped_code
from tailorbird.config.serving import ServingConfig

# Texts of a shadow in one pass: what a request that comes meanwhile has to wait for.
SHADOW_TEXTS = 4


class RequestContext(NamedTuple):
    """A request as it came."""

    route: str
    request_id: str
    begun: float
    """`time.perf_counter()`."""
    caller: str | None
    """Whose key it carries."""
    arm: Arm | None
    """Of a trial, where it takes part in one."""


class Classifier:
    """Serve deployment. `user_config` names the version: `{"version_uri": ..., "digest": ...}`."""

    def __init__(self, task_uri: str, config: dict[str, Any]) -> None:
        import torch

        require_shipped_code()
        self._home = task_uri
        self._section = ServingConfig.model_validate(config)
        torch.set_num_threads(self._section.cpus_per_replica)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        worker = ThreadPoolExecutor(1, thread_name_prefix="model")
        meter = Meter()
        shelf = ModelPool(worker=worker, batch_size=self._section.max_batch_size, meter=meter)
        self._replica = Replica(shelf.load, config=self._section, meter=meter, unload=shelf.unload)
        self._shadows = ShadowRunner(self._is_quiet)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        routes = {
            "/v1/classify": Route("POST", self._classify),
            "/v1/compare": Route("POST", self._compare),
            "/": Route("GET", self._page, open=True, content_type=HTML),
        }
        batches = BatchRoutes(self._replica.engine_of, task_uri=self._home, config=self._section)
        return self._replica.asgi_app(routes | batches.routes(), on_startup=batches.resume)

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """As `Replica.reconfigure`; a request that waits on the former engine's queue is answered by it."""
        await self._replica.reconfigure(user_config)

    async def _classify(self, body: bytes, request_id: str) -> tuple[int, bytes]:
        begun, request = time.perf_counter(), self._parsed(body)
        unit = request.subject or request_id
        engine, arm = self._replica.drawn(request.model, unit=unit)
        asked = RequestContext("classify", request_id, begun, caller.get(), arm)
        answer = await self._answered(request, engine=engine, asked=asked)
        shadow = self._replica.shadow(unit=unit) if arm == "champion" else None
        if shadow is not None:
            show = partial(self._show, request, engine=shadow, asked=asked._replace(arm="shadow"))
            self._shadows.add(show, num_bytes=len(body))
        return 200, write_answer(answer)

    async def _compare(self, body: bytes, request_id: str) -> tuple[int, bytes]:
        """Both models' answers to the same texts."""
        begun, request = time.perf_counter(), self._parsed(body)
        engines = {name: self._replica.engine_of(name) for name in (PRETRAINED, CHAMPION)}
        asked = RequestContext("compare", request_id, begun, caller.get(), None)
        different = list({id(engine): engine for engine in engines.values()}.values())
        found = await asyncio.gather(*(self._answered(request, engine=engine, asked=asked) for engine in different))
        answers = {id(engine): answer for engine, answer in zip(different, found, strict=True)}
        told = {name: answers[id(engine)] for name, engine in engines.items()}
        return 200, write_answer({"request_id": request_id, **told})

    async def _page(self, _body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, render_page("classify.html")

    def _parsed(self, body: bytes) -> ClassifyRequest:
        _ = self._replica.engine  # before the request is looked at: not ready is not its fault
        request = parse_request(body, max_texts=self._section.max_texts)
        refuse_unkept_subject(request.subject, log=self._replica.log)
        return request

    async def _answered(self, request: ClassifyRequest, *, engine: ClassifierEngine, asked: RequestContext) -> dict[str, object]:
        """One model's answer, and its rows in the log."""
        version = engine.version
        record_version(version)
        predictions = await engine.submit(_rows(request, engine=engine))
        self._replica.meter.count(TEXTS, version.name, version.version, by=len(predictions))
        self._tell(request, predictions, engine=engine, asked=asked)
        results: list[dict[str, Any]] = [{"label": label, "score": score} for label, score, _, _ in predictions]
        if engine.routing is not None:
            for result, prediction in zip(results, predictions, strict=True):
                result["answered_by"] = prediction.answered_by
        if request.scores:
            for result, prediction in zip(results, predictions, strict=True):
                result["scores"] = scores_by_class(engine.loaded, prediction)
        return {"request_id": asked.request_id, "model": version.name, "version": version.version, "results": results}

    async def _show(self, request: ClassifyRequest, *, engine: ClassifierEngine, asked: RequestContext) -> None:
        """The answer of the version on trial, for the log alone; a few texts at a time, each when nobody else waits.

        They go through the thread that all models share: in one of its own, a shadow would take its time from a
        champion's pass on the same core, and models could not share what they have in common.
        """
        rows, predictions = _rows(request, engine=engine), []
        for start in range(0, len(rows), SHADOW_TEXTS):
            await self._shadows.quiet()
            if not self._replica.is_on_trial(engine):
                return
            predictions += await engine.submit(rows[start : start + SHADOW_TEXTS])
        self._tell(request, predictions, engine=engine, asked=asked)

    def _is_quiet(self) -> bool:
        """Whether no model but that on trial has had anything to do for a moment."""
        engines = self._replica.engines
        return all(engine.idle_s() >= QUIET_S for name, engine in engines.items() if name != CHALLENGER)

    def _tell(self, request: ClassifyRequest, predictions: list[Prediction], *, engine: ClassifierEngine, asked: RequestContext) -> None:
        log = self._replica.log
        if log is not None:
            log.answers.add(_entries(request, predictions, engine=engine, asked=asked, log=log))


def _rows(request: ClassifyRequest, *, engine: ClassifierEngine) -> list[Any]:
    """The texts, as the engine's batcher takes them."""
    return list(request.texts) if engine.routing is None else list(hybrid_rows(engine.routing, request))


def _entries(
    request: ClassifyRequest, predictions: list[Prediction], *, engine: ClassifierEngine, asked: RequestContext, log: RequestLog
) -> list[LogEntry]:
    """What the log keeps of an answer."""
    version, at, latency_s = engine.version, utc_now(), time.perf_counter() - asked.begun
    given = request.attributes
    attributes = given if isinstance(given, list) else [given] * len(predictions)
    return [
        LogEntry(
            request_id=asked.request_id,
            at=at,
            model=version.name,
            version=version.version,
            digest=version.digest,
            row=row,
            latency_s=latency_s,
            subject=request.subject,
            attributes=attributes[row],
            label=prediction.label,
            score=prediction.score,
            answered_by=prediction.answered_by,
            classes=classes_of(engine.loaded, prediction),
            scores=prediction.scores,
            text=log.kept(text),
            route=asked.route,
            caller=asked.caller,
            arm=asked.arm,
        )
        for row, (text, prediction) in enumerate(zip(request.texts, predictions, strict=True))
    ]
