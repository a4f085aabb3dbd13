"""A replica's metrics, which are collected in memory and exported to Ray every few seconds."""

import asyncio
import logging
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from serving.http.asgi import ASGIApp, Endpoint, caller
from serving.http.refusals import STATUSES, Refusal, Refusals
from serving.http.schemas import RequestError

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

EXPORT_S = 5.0
"""Export interval. A call of Ray's metrics API takes about 10 microseconds, so a thread exports
sums instead."""
# bound on observations between two exports; a replica answers fewer requests
MAX_OBSERVATIONS = 1 << 17
CLIENT_CLOSED_REQUEST = 499
"""Status (nginx's) of a request whose client disconnected before the end of the response."""
UNKNOWN_ROUTE = "other"  # route label of unknown paths: clients must not be able to create labels

_log = logging.getLogger("ray.serve")


class Metric(NamedTuple):
    """A metric, to which Ray adds the prefix `ray_` and the labels deployment, replica and
    application."""

    name: str
    description: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets."""


Series = tuple[Metric, tuple[str, ...]]  # a metric and its label values
Gauges = Mapping[Series, float]
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_REQUEST_LABELS = ("route", "model", "version")
REQUESTS = Metric(
    "tailorbird_requests_total",
    "Requests by response status; 499 if the client disconnected before the end of the response.",
    (*_REQUEST_LABELS, "status"),
)
REQUEST_SECONDS = Metric(
    "tailorbird_request_seconds",
    "Time from a request's headers to the last byte of a response with status 200.",
    labels=_REQUEST_LABELS,
    buckets=_SECONDS,
)
FIRST_TOKEN_SECONDS = Metric(
    "tailorbird_first_token_seconds",
    "Time from a request's headers to the first token of a stream.",
    labels=_REQUEST_LABELS,
    buckets=_SECONDS,
)
IN_PROGRESS = Metric("tailorbird_requests_in_progress", "Requests without a complete response.")
TEXTS = Metric("tailorbird_texts_total", "Texts classified.", ("model", "version"))
BATCH_TEXTS = Metric(
    "tailorbird_batch_texts",
    "Texts per dynamic batch.",
    labels=("model", "version"),
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0),
)
TOKENS = Metric(
    "tailorbird_tokens_total", "Tokens of prompts and of completions.", ("model", "version", "kind")
)
ENDPOINT_REQUESTS = Metric(
    "tailorbird_endpoint_requests_total",
    "Requests to the endpoint of a version, attempts included: `ok`, `cancelled`, or the type of "
    "the error.",
    ("model", "version", "outcome"),
)
ENDPOINT_TOKENS = Metric(
    "tailorbird_endpoint_tokens_total",
    "Tokens of prompts and of completions of an endpoint; `estimated` is `no` if the endpoint "
    "has counted them.",
    ("model", "version", "kind", "estimated"),
)
ENDPOINT_SPEND = Metric(
    "tailorbird_endpoint_spend_total",
    "Price of these tokens, in the currency of the recipe's prices; only for versions with prices.",
    ("model", "version", "estimated"),
)
OTHER_MODEL = Metric(
    "tailorbird_endpoint_other_model_total",
    "Answers for which the endpoint reported another model than in the evaluation.",
    ("model", "version"),
)
HYBRID_ANSWERS = Metric(
    "tailorbird_hybrid_answers_total",
    "Answers of a hybrid by the part that answered; `fallback` is `yes` if the other part should "
    "have, but failed.",
    ("model", "version", "part", "fallback"),
)
SERVING = Metric(
    "tailorbird_serving",
    "1 for a served version, 0 for a previous one; the role is champion, challenger, baseline or "
    "the version.",
    ("model", "version", "role"),
)
REFUSED = Metric(
    "tailorbird_version_refused",
    "1 while the previous champion still serves because the new one could not be loaded, else 0.",
)
LOG_DROPPED = Metric(
    "tailorbird_log_rows_dropped_total",
    "Rows of the request log that were lost, because their key had too many rows that were not "
    "on S3 or the disk was full.",
    ("kind",),
)
KEY_ERRORS = Metric(
    "tailorbird_api_key_errors",
    "Lines of `serving.api_keys` that cannot be read, or 1 if the file cannot be read. Previous "
    "keys stay valid.",
)


@dataclass(slots=True)
class RequestState:
    """The labels of a request in progress."""

    model: str = ""
    version: str = ""
    failed: int | None = None  # status of an error that occurred after the status 200 was sent


_request_state: ContextVar[RequestState | None] = ContextVar("state", default=None)


def record_version(version: "ModelVersion") -> None:
    """Record the version that answers the current request; a later call replaces it."""
    state = _request_state.get()
    if state is not None:
        state.model = version.name
        state.version = version.version


def record_failure(status: int) -> None:
    """Record the error status of the current stream, which failed after the status 200 was sent."""
    state = _request_state.get()
    if state is not None:
        state.failed = status


@cache
def ray_instrument(metric: Metric) -> Any:
    """Return Ray Serve's counter, histogram or gauge. Call this in a replica: Ray adds the
    replica's labels."""
    from ray.serve import metrics

    options = {"description": metric.description, "tag_keys": metric.labels}
    if metric.buckets:
        return metrics.Histogram(metric.name, boundaries=list(metric.buckets), **options)
    if metric.name.endswith("_total"):
        return metrics.Counter(
            metric.name.removesuffix("_total"), **options
        )  # the exporter adds the suffix
    return metrics.Gauge(metric.name, **options)


class Meter:
    """Counts and observations since the last export.

    `observe` is thread-safe. Call the other methods from the event loop.
    """

    def __init__(self) -> None:
        self.in_progress = 0
        self._counts: defaultdict[Series, float] = defaultdict(float)
        self._observed: deque[tuple[Metric, tuple[str, ...], float]] = deque(
            maxlen=MAX_OBSERVATIONS
        )
        self._totals: Counter[Series] = Counter()
        self._gauges: set[Series] = set()

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        """Add `by` to a counter; `labels` are in the metric's order."""
        if by:  # Ray rejects an increment of 0
            self._counts[metric, labels] += by

    def count_to(self, metric: Metric, *labels: str, total: int) -> None:
        """Increase a counter to the caller's running total."""
        self.count(metric, *labels, by=total - self._totals[metric, labels])
        self._totals[metric, labels] = total

    def observe(self, metric: Metric, *labels: str, value: float) -> None:
        """Add a value to a histogram."""
        self._observed.append((metric, labels, value))

    def count_part(self, version: "ModelVersion", part: str | None, *, is_fallback: bool) -> None:
        """Count an answer of a hybrid's part; do nothing if `part` is None, for other versions."""
        if part is not None:
            self.count(
                HYBRID_ANSWERS, version.name, version.version, part, "yes" if is_fallback else "no"
            )

    async def keep_exporting(
        self, gauges: Callable[[], Gauges], *, instrument: Callable[[Metric], Any] = ray_instrument
    ) -> None:
        """Export every few seconds until cancelled; `instrument` returns a metric's counter,
        histogram or gauge."""
        while True:
            await asyncio.sleep(EXPORT_S)
            try:
                current = self._with_previous(gauges())
                counts = self._counts
                self._counts = defaultdict(float)
                await asyncio.to_thread(self.export, instrument, counts, current)
            except Exception:  # the service continues without metrics
                _log.exception("the metrics could not be exported to Ray")

    def _with_previous(self, gauges: Gauges) -> Gauges:
        """Add zeros for gauges that no longer exist, because Ray keeps exporting a gauge's last
        value."""
        self._gauges |= set(gauges)
        return dict.fromkeys(self._gauges, 0.0) | dict(gauges)

    def export(
        self, instrument: Callable[[Metric], Any], counts: Mapping[Series, float], gauges: Gauges
    ) -> None:
        """Export the counts, the observations and the gauges once."""
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
    if isinstance(endpoint, Endpoint):
        return endpoint.path
    return UNKNOWN_ROUTE


def _client(scope: Scope) -> str:
    name = caller.get()
    address = scope.get("client")
    if name:
        return f"key {name}"
    return f"address {address[0] if address else 'unknown'}"


def with_request_metrics(app: ASGIApp, *, meter: Meter, refusals: Refusals) -> ASGIApp:
    """Return the application with request metrics and counts of refusals; a request is counted when
    it ends."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started = time.perf_counter()
        state = RequestState()
        _request_state.set(state)
        caller.set(None)
        status = CLIENT_CLOSED_REQUEST
        is_complete = False
        has_streamed = False

        async def observed_send(message: Message) -> None:
            nonlocal status, is_complete, has_streamed
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                is_complete = not message.get("more_body", False)
                if not is_complete and not has_streamed:
                    has_streamed = True
                    seconds = time.perf_counter() - started
                    meter.observe(
                        FIRST_TOKEN_SECONDS,
                        _route(scope),
                        state.model,
                        state.version,
                        value=seconds,
                    )
            await send(message)

        meter.in_progress += 1
        try:
            await app(scope, receive, observed_send)
        finally:
            meter.in_progress -= 1
            if is_complete:
                final_status = state.failed or status
            else:
                final_status = CLIENT_CLOSED_REQUEST
            labels = (_route(scope), state.model, state.version)
            meter.count(REQUESTS, *labels, str(final_status))
            if final_status == 200:
                meter.observe(REQUEST_SECONDS, *labels, value=time.perf_counter() - started)
            error: RequestError | None = scope.get("error")
            if error is not None and error.status in STATUSES:
                refusals.add(Refusal(error.status, error.type, _client(scope)))

    return counted
