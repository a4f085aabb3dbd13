"""A replica's metrics: counted in memory on the request path, and exported to Ray's metrics every few seconds."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from serving.http.asgi import ASGIApp, Endpoint

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

EXPORT_S = 5.0
"""Export interval. A call of Ray's costs about 10 microseconds, so sums are exported, outside of the event loop."""
MAX_OBSERVATIONS = 1 << 17  # most observations between two exports: more than a replica answers requests in that time
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client disconnected before the end of the answer; nginx's number."""
UNKNOWN_ROUTE = "other"  # the route label of unknown paths: clients must not create labels

_log = logging.getLogger("ray.serve")


class Metric(NamedTuple):
    """A metric. Ray adds the prefix `ray_` and the labels deployment, replica and application."""

    name: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


Series = tuple[Metric, tuple[str, ...]]  # a metric and the values of its labels
Gauges = Mapping[Series, float]
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_REQUEST_LABELS = ("route", "model", "version")
REQUESTS = Metric(
    "tailorbird_requests_total",
    "Requests by what they were answered with; 499 where the client went before the end.",
    (*_REQUEST_LABELS, "status"),
)
REQUEST_SECONDS = Metric(
    "tailorbird_request_seconds",
    "From a request's headers to the last byte of a 200 answer.",
    _REQUEST_LABELS,
    _SECONDS,
)
FIRST_TOKEN_SECONDS = Metric(
    "tailorbird_first_token_seconds",
    "From a request's headers to the first token of a stream.",
    _REQUEST_LABELS,
    _SECONDS,
)
IN_PROGRESS = Metric("tailorbird_requests_in_progress", "Requests that the replica has not answered to the end yet.")
TEXTS = Metric("tailorbird_texts_total", "Texts classified.", ("model", "version"))
BATCH_TEXTS = Metric(
    "tailorbird_batch_texts",
    "Texts taken from a queue at once; of versions over one base model, version is `shared`.",
    ("model", "version"),
    (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
)
TOKENS = Metric("tailorbird_tokens_total", "Tokens of prompts and of completions.", ("model", "version", "kind"))
SERVING = Metric(
    "tailorbird_serving",
    "1 of the version that answers by this role (champion, pretrained), 0 of one that did.",
    ("model", "version", "role"),
)
REFUSED = Metric(
    "tailorbird_version_refused", "1 while the version deployed last could not be loaded and the former serves on."
)
LOG_DROPPED = Metric(
    "tailorbird_log_rows_dropped_total", "Rows of the request log given up because its store was away.", ("kind",)
)


@dataclass(slots=True)
class RequestState:
    """What a request in progress will be counted as."""

    model: str = ""
    version: str = ""
    failed: int | None = None  # status of an error after the status 200 was sent


_request_state: ContextVar[RequestState | None] = ContextVar("state", default=None)


def record_version(version: "ModelVersion") -> None:
    """Record which version answers the current request; of several, the last is counted."""
    state = _request_state.get()
    if state is not None:
        state.model, state.version = version.name, version.version


def record_failure(status: int) -> None:
    """Record that the current stream, whose status 200 is sent already, broke off; it is counted by this status."""
    state = _request_state.get()
    if state is not None:
        state.failed = status


@cache
def ray_instrument(metric: Metric) -> Any:
    """Return Ray Serve's counter, histogram or gauge; call it in a replica, whose name it carries."""
    from ray.serve import metrics

    options = {"description": metric.description, "tag_keys": metric.labels}
    if metric.buckets:
        return metrics.Histogram(metric.name, boundaries=list(metric.buckets), **options)
    if metric.name.endswith("_total"):
        return metrics.Counter(metric.name.removesuffix("_total"), **options)  # the exporter adds the suffix
    return metrics.Gauge(metric.name, **options)


class Meter:
    """Counts and observations since the last export. `observe` is thread-safe; call the rest from the event loop."""

    def __init__(self) -> None:
        self.in_progress = 0
        self._counts: Counter[Series] = Counter()
        self._observed: deque[tuple[Metric, tuple[str, ...], float]] = deque(maxlen=MAX_OBSERVATIONS)
        self._totals: Counter[Series] = Counter()
        self._gauges: set[Series] = set()

    def count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        """Add to a counter; `labels` are in the metric's order."""
        if by:  # Ray refuses zero
            self._counts[metric, labels] += by

    def count_to(self, metric: Metric, *labels: str, total: int) -> None:
        """Raise a counter to a total that is kept elsewhere."""
        self.count(metric, *labels, by=total - self._totals[metric, labels])
        self._totals[metric, labels] = total

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Add a value to a histogram."""
        self._observed.append((metric, labels, value))

    async def keep_exporting(
        self, gauges: Callable[[], Gauges], *, instrument: Callable[[Metric], Any] = ray_instrument
    ) -> None:
        """Export every few seconds, until cancelled; `instrument` returns a metric's counter, histogram or gauge."""
        while True:
            await asyncio.sleep(EXPORT_S)
            try:
                current = self._with_former(gauges())
                counts, self._counts = self._counts, Counter()
                await asyncio.to_thread(self.export, instrument, counts, current)
            except Exception:  # the service continues without metrics
                _log.exception("the metrics could not be exported to Ray")

    def _with_former(self, gauges: Gauges) -> Gauges:
        """Add zeros for gauges that are gone: Ray keeps exporting a gauge's last value."""
        self._gauges |= set(gauges)
        return dict.fromkeys(self._gauges, 0.0) | dict(gauges)

    def export(self, instrument: Callable[[Metric], Any], counts: Mapping[Series, int], gauges: Gauges) -> None:
        """Export everything once."""
        for (metric, labels), by in counts.items():
            instrument(metric).inc(by, tags=_tags(metric, labels))
        for _ in range(len(self._observed)):
            metric, labels, value = self._observed.popleft()
            instrument(metric).observe(value, tags=_tags(metric, labels))
        for (metric, labels), value in gauges.items():
            instrument(metric).set(value, tags=_tags(metric, labels))


def _tags(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


def _route(scope: Scope) -> str:
    """Return the path of the route that answers the request."""
    endpoint = scope.get("endpoint")
    return endpoint.path if isinstance(endpoint, Endpoint) else UNKNOWN_ROUTE


def with_request_metrics(app: ASGIApp, *, meter: Meter) -> ASGIApp:
    """Return the application with each request counted at its end."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started, state = time.perf_counter(), RequestState()
        _request_state.set(state)
        status, complete, streamed = CLIENT_CLOSED_REQUEST, False, False

        async def observed_send(message: Message) -> None:
            nonlocal status, complete, streamed
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                complete = not message.get("more_body", False)
                if not complete and not streamed:
                    streamed = True
                    seconds = time.perf_counter() - started
                    meter.observe(FIRST_TOKEN_SECONDS, _route(scope), state.model, state.version, value=seconds)
            await send(message)

        meter.in_progress += 1
        try:
            await app(scope, receive, observed_send)
        finally:
            meter.in_progress -= 1
            final_status = state.failed or status if complete else CLIENT_CLOSED_REQUEST
            labels = (_route(scope), state.model, state.version)
            meter.count(REQUESTS, *labels, str(final_status))
            if final_status == 200:
                meter.observe(REQUEST_SECONDS, *labels, value=time.perf_counter() - started)

    return counted
