"""Metrics: labels of requests, sums per export, and zeros for previous gauges."""

import asyncio
import re
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from serving.http import metrics
from serving.http.asgi import Endpoint, Route
from serving.http.metrics import (
    FIRST_TOKEN_SECONDS,
    LOG_DROPPED,
    REQUEST_SECONDS,
    REQUESTS,
    SERVING,
    TEXTS,
    Meter,
    Metric,
    Series,
    record_failure,
    record_version,
    with_request_metrics,
)
from serving.http.refusals import Refusals
from serving.limits import FairSlots
from tests.unit.serving.http.application import exchange

ROOT = Path(__file__).parents[4]


class Version:
    name, version = "task", "full-1"


class Recorder:
    """A recorder of the values exported to Ray."""

    def __init__(self) -> None:
        self.exported: list[tuple[str, float, dict[str, str]]] = []

    def __call__(self, metric: Metric) -> Any:
        def record(value: float, *, tags: dict[str, str]) -> None:
            self.exported.append((metric.name, value, tags))

        methods = dict.fromkeys(("inc", "observe", "set"), staticmethod(record))
        return type("", (), methods)


def _start(status: int) -> Message:
    return {"type": "http.response.start", "status": status, "headers": []}


def _body(*, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": b"a", "more_body": more}


def _counted(
    *sent: Message, path: str = "/v1/x", failed: int | None = None, breaks: bool = False
) -> Meter:
    """Return the meter after a request that is answered with these messages."""
    meter = Meter()

    async def answer_nothing(_body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, b""

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        if scope["path"] == "/prefix/v1/x":  # as Starlette does
            scope["endpoint"] = Endpoint(
                path="/v1/x",
                routes={"POST": Route("POST", answer_nothing)},
                max_body_bytes=1,
                authenticate=lambda _headers, _route: None,
                admit=lambda _: nullcontext(),
                turns=FairSlots(1),
            )
        assert meter.in_progress == 1
        record_version(Version())  # type: ignore[arg-type]

        async def answer() -> None:
            for message in sent:
                await send(message)
            if failed is not None:
                record_failure(failed)

        await asyncio.create_task(
            answer()
        )  # a task of its own, like a handler that a disconnect cancels
        if breaks:
            raise OSError("gone")

    counted = with_request_metrics(app, meter=meter, refusals=Refusals("icd10"))
    with pytest.raises(OSError, match="gone") if breaks else nullcontext():
        asyncio.run(exchange(counted, "POST", f"/prefix{path}", root_path="/prefix"))
    assert meter.in_progress == 0
    return meter


def _exported(meter: Meter) -> list[tuple[str, float, dict[str, str]]]:
    recorder = Recorder()
    meter.export(recorder, meter._counts, {})
    return recorder.exported


LABELS = {"route": "/v1/x", "model": "task", "version": "full-1"}


def test_a_response_is_counted_by_route_version_and_status_and_timed_if_it_succeeded() -> None:
    (name, by, tags), (timed, seconds, labels) = _exported(_counted(_start(200), _body()))
    assert (name, by, tags) == (REQUESTS.name, 1, LABELS | {"status": "200"})
    assert (timed, labels) == (REQUEST_SECONDS.name, LABELS)
    assert seconds > 0
    ((name, by, tags),) = _exported(_counted(_start(422), _body()))
    assert (name, by, tags) == (REQUESTS.name, 1, LABELS | {"status": "422"})
    unknown = _exported(_counted(_start(404), _body(), path="/v1/made-up"))
    assert unknown[0][2]["route"] == "other"


def test_a_stream_records_the_first_token_and_a_failed_stream_is_not_a_200() -> None:
    events = (_start(200), _body(more=True), _body(more=True))
    labels_by_name = {name: tags for name, _, tags in _exported(_counted(*events, _body()))}
    assert labels_by_name == {
        FIRST_TOKEN_SECONDS.name: LABELS,
        REQUESTS.name: LABELS | {"status": "200"},
        REQUEST_SECONDS.name: LABELS,
    }
    for status, meter in (
        ("500", _counted(*events, _body(), failed=500)),
        ("499", _counted(*events)),
        ("499", _counted(*events, breaks=True)),
    ):
        labels_by_name = {name: tags for name, _, tags in _exported(meter)}
        assert labels_by_name[REQUESTS.name]["status"] == status
        assert REQUEST_SECONDS.name not in labels_by_name


def test_a_counter_is_exported_as_a_sum_and_a_total_as_its_increase() -> None:
    meter = Meter()
    for _ in range(3):
        meter.count(TEXTS, "task", "full-1", by=2)
    meter.count(TEXTS, "task", "full-2", by=0)
    for total in (0, 5, 5, 7):
        meter.count_to(LOG_DROPPED, "answers", total=total)
    assert _exported(meter) == [
        (TEXTS.name, 6, {"model": "task", "version": "full-1"}),
        (LOG_DROPPED.name, 7, {"kind": "answers"}),
    ]


def test_the_gauge_of_a_previous_version_becomes_zero_and_counts_start_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "EXPORT_S", 0.0)
    meter = Meter()
    recorder = Recorder()
    versions = ["full-1", "full-2"]

    async def export() -> None:
        is_done = asyncio.Event()

        def gauges() -> dict[Series, float]:
            if not versions:
                is_done.set()
                return {}
            version = versions.pop(0)
            meter.count(TEXTS, "task", version)
            return {(SERVING, ("task", version, "champion")): 1.0}

        exporting = asyncio.create_task(meter.keep_exporting(gauges, instrument=recorder))
        await is_done.wait()
        exporting.cancel()

    asyncio.run(export())
    values: dict[str, list[tuple[str, float]]] = {TEXTS.name: [], SERVING.name: []}
    for name, value, tags in recorder.exported:
        values[name].append((tags["version"], value))
    assert values[TEXTS.name] == [("full-1", 1), ("full-2", 1)]
    assert values[SERVING.name][0] == ("full-1", 1)
    assert sorted(values[SERVING.name][1:3]) == [("full-1", 0), ("full-2", 1)]


def test_queries_in_the_docs_name_existing_metrics_and_labels() -> None:
    known = {
        f"ray_{metric.name}": metric
        for metric in vars(metrics).values()
        if isinstance(metric, Metric)
    }
    by_histogram = {
        f"{name}_{suffix}": metric
        for name, metric in known.items()
        if metric.buckets
        for suffix in ("bucket", "sum", "count")
    }
    ray_labels = {"application", "deployment", "replica", "le"}
    page = (ROOT / "docs" / "operations.md").read_text()
    queries = re.findall(r"(ray_tailorbird_\w+)(?:\{([^}]*)\})?", page)
    assert len(queries) > 8
    for name, filters in queries:
        metric = (known | by_histogram)[name]
        assert not metric.buckets or name in by_histogram, name
        assert set(re.findall(r"(\w+)=", filters)) <= {*metric.labels, *ray_labels}, (name, filters)
    for by, of in re.findall(r"by \(([\w, ]+)\) \(?(?:rate\()?(ray_tailorbird_\w+)", page):
        assert set(by.split(", ")) <= {*(known | by_histogram)[of].labels, *ray_labels}, (by, of)
