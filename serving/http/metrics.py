"""What a replica counts for Prometheus: plain numbers on the request path, told to Ray's metrics every few seconds."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from serving.http.asgi import ASGIApp, Endpoint

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

# A record of Ray's costs about 10 microseconds: counts are summed up and told at once, outside of the loop.
EXPORT_S = 5.0
MAX_OBSERVATIONS = 1 << 17
"""What waits to be told at most, a few seconds' of more requests than one replica answers."""
CLIENT_CLOSED_REQUEST = 499
"""Status of a request whose client went before it was answered to the end; nginx's number."""
UNKNOWN_ROUTE = "other"
"""The route of a path that there is not: what strangers make up is no label."""

_log = logging.getLogger("ray.serve")


class Metric(NamedTuple):
    """A metric as Ray exports it, with `ray_` before its name and deployment, replica and application as labels."""

    name: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's."""


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
    """A request while it is answered, as it will be counted."""

    model: str = ""
    version: str = ""
    failed: int | None = None
    """Status of what went wrong after a 200 was begun."""


_request_state: ContextVar[RequestState | None] = ContextVar("ongoing", default=None)


def record_version(version: "ModelVersion") -> None:
    """Says which version answers the request that is being answered; of several, the last is counted."""
    ongoing = _request_state.get()
    if ongoing is not None:
        ongoing.model, ongoing.version = version.name, version.version


def record_failure(status: int) -> None:
    """Says that the stream that is being answered broke off: it has said 200 already, and is counted by this."""
    ongoing = _request_state.get()
    if ongoing is not None:
        ongoing.failed = status


class Meter:
    """Counts and observations since the last export. `observe` may be called from any thread, the rest from the loop's.

    What Ray is told and how is `to_ray`'s: it is made in the replica's process, at the first export.
    """

    def __init__(self) -> None:
        self.in_progress = 0
        self._counts: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
        self._observed: deque[tuple[Metric, tuple[str, ...], float]] = deque(maxlen=MAX_OBSERVATIONS)
        self._totals: Counter[tuple[Metric, tuple[str, ...]]] = Counter()
        self._gauges: set[tuple[Metric, tuple[str, ...]]] = set()

    def count(self, metric: Metric, *labels: str, by: int = 1) -> None:
        """Adds to a counter; `labels` in the metric's order."""
        if by:  # Ray takes no zero
            self._counts[metric, labels] += by

    def count_to(self, metric: Metric, *labels: str, total: int) -> None:
        """Adds to a counter what is missing of a total that is kept elsewhere."""
        self.count(metric, *labels, by=total - self._totals[metric, labels])
        self._totals[metric, labels] = total

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Adds a value to a histogram."""
        self._observed.append((metric, labels, value))

    async def keep_exporting(self, gauges: "Callable[[], Gauges]", *, to_ray: "Callable[[], Instruments]") -> None:
        """Tells Ray every few seconds, until cancelled; `gauges` are read then."""
        instruments: Instruments | None = None
        while True:
            await asyncio.sleep(EXPORT_S)
            try:
                instruments = instruments or to_ray()
                told = self._with_former(gauges())
                counts, self._counts = self._counts, Counter()
                await asyncio.to_thread(self.export, instruments, counts, told)
            except Exception:  # a service goes on without its metrics
                _log.exception("the metrics could not be told to Ray")

    def _with_former(self, gauges: "Gauges") -> "Gauges":
        """And zero for what there was once: Ray goes on telling the last value of a gauge."""
        self._gauges |= set(gauges)
        return dict.fromkeys(self._gauges, 0.0) | dict(gauges)

    def export(
        self, instruments: "Instruments", counts: Mapping[tuple[Metric, tuple[str, ...]], int], gauges: "Gauges"
    ) -> None:
        """Tells all of it once."""
        for (metric, labels), by in counts.items():
            instruments.of(metric).inc(by, tags=_tags(metric, labels))
        for _ in range(len(self._observed)):
            metric, labels, value = self._observed.popleft()
            instruments.of(metric).observe(value, tags=_tags(metric, labels))
        for (metric, labels), value in gauges.items():
            instruments.of(metric).set(value, tags=_tags(metric, labels))


Gauges = Mapping[tuple[Metric, tuple[str, ...]], float]
"""What is so now, by metric and labels."""


class Instruments:
    """Ray Serve's metrics, made as they are needed: they must be made in a replica, of which they carry the name."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def of(self, metric: Metric) -> Any:
        """Ray's counter, histogram or gauge."""
        if metric.name not in self._made:
            self._made[metric.name] = _new_instrument(metric)
        return self._made[metric.name]


def _new_instrument(metric: Metric) -> Any:
    from ray.serve import metrics

    options = {"description": metric.description, "tag_keys": metric.labels}
    if metric.buckets:
        return metrics.Histogram(metric.name, boundaries=list(metric.buckets), **options)
    if metric.name.endswith("_total"):
        return metrics.Counter(metric.name.removesuffix("_total"), **options)  # the exporter adds it
    return metrics.Gauge(metric.name, **options)


def _tags(metric: Metric, labels: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(metric.labels, labels, strict=True))


def _route(scope: Scope) -> str:
    """The path of the route that answers a request, as the application found it."""
    endpoint = scope.get("endpoint")
    return endpoint.path if isinstance(endpoint, Endpoint) else UNKNOWN_ROUTE


def with_request_metrics(app: ASGIApp, *, meter: Meter) -> ASGIApp:
    """The application, each of whose requests is counted when it is over."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        begun, ongoing = time.perf_counter(), RequestState()
        _request_state.set(ongoing)
        status, whole, streamed = CLIENT_CLOSED_REQUEST, False, False

        async def watched(message: Message) -> None:
            nonlocal status, whole, streamed
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                whole = not message.get("more_body", False)
                if not whole and not streamed:
                    streamed = True
                    seconds = time.perf_counter() - begun
                    meter.observe(FIRST_TOKEN_SECONDS, _route(scope), ongoing.model, ongoing.version, value=seconds)
            await send(message)

        meter.in_progress += 1
        try:
            await app(scope, receive, watched)
        finally:
            meter.in_progress -= 1
            told = ongoing.failed or status if whole else CLIENT_CLOSED_REQUEST
            asked = (_route(scope), ongoing.model, ongoing.version)
            meter.count(REQUESTS, *asked, str(told))
            if told == 200:
                meter.observe(REQUEST_SECONDS, *asked, value=time.perf_counter() - begun)

    return counted
