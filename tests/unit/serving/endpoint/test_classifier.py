"""Classification by an endpoint, with a real server on the loopback interface."""

import asyncio
import json
import math
import threading
from collections.abc import Sequence
from typing import Any

import pytest

from serving.endpoint.classifier import EndpointClassifier
from serving.endpoint.upstream import Limits, Upstream
from serving.engines.classify import Prediction
from serving.engines.model_pool import ClassifierEngine
from serving.http.metrics import Meter
from serving.http.schemas import RequestError
from tailorbird.models.endpoint.client import RetryPolicy
from tests.endpoint_server import (
    Reply,
    Server,
    completion,
    endpoint_server,
    question,
    refusal,
)
from tests.unit.serving.endpoint.versions import KEY, VARIABLE, endpoint_version
from tests.unit.serving.http.application import chunks, exchange
from tests.unit.serving.replica.test_classifier import new_classifier

CLASSES = ("bone", "skin")
RETRY = RetryPolicy(max_attempts=1, client_waits=True)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def engine_of(server: Server, *, concurrency: int = 4) -> ClassifierEngine:
    version = endpoint_version(server.url, classes=CLASSES)
    upstream = Upstream(version, limits=Limits(concurrency, 5), meter=Meter(), retry=RETRY)
    classifier = EndpointClassifier(version, upstream=upstream, concurrency=concurrency)
    return ClassifierEngine(
        version,
        classifier.submit,
        lambda: math.inf,
        1 << 30,
        unload=classifier.unload,
        submit_each=classifier.submit_each,
    )


def label(body: dict[str, Any], _: int = 0) -> Reply:
    return completion(json.dumps({"label": question(body)}), logprobs=(-0.25, -0.25))


def predict(engine: ClassifierEngine, texts: Sequence[str]) -> list[Prediction]:
    async def submit() -> list[Prediction]:
        return await engine.submit(texts, client="a")

    return asyncio.run(submit())


def test_a_client_that_leaves_cancels_its_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    received = threading.Event()
    classifier = new_classifier(monkeypatch)

    def answer(*_: object) -> Reply:
        received.set()
        return Reply(waits=True)

    async def scenario(app: Any) -> None:
        is_gone = asyncio.Event()
        body = chunks(b'{"input": "x"}')
        headers = {b"host": b"127.0.0.1"}
        request = asyncio.create_task(
            exchange(app, "POST", "/v1/classify", body=body, headers=headers, disconnect=is_gone)
        )
        await asyncio.to_thread(received.wait, 10)
        is_gone.set()
        assert await asyncio.wait_for(request, 10) == []

    with endpoint_server(answer) as server:
        classifier._replica.versions.engines = {"champion": engine_of(server)}
        asyncio.run(scenario(classifier.__serve_build_asgi_app__()))
    assert len(server.bodies) == 1


def each(
    engine: ClassifierEngine, texts: Sequence[str], *, timeout_s: float = 30
) -> list[Prediction | RequestError]:
    async def submit() -> list[Prediction | RequestError]:
        assert engine.submit_each is not None
        return list(await engine.submit_each(texts, client="a", timeout_s=timeout_s))

    return asyncio.run(submit())


def shown(result: Prediction | RequestError) -> str | int:
    return result.status if isinstance(result, RequestError) else result.label


def test_an_error_of_one_text_leaves_the_answers_of_the_others() -> None:
    filtered = refusal(400, "no", code="content_filter")
    replies = {"bad": filtered, "odd": completion("neither")}

    def answer(body: dict[str, Any], _: int) -> Reply:
        return replies.get(question(body)) or label(body)

    texts = ["bone", "bad", "odd", "skin"]
    with endpoint_server(answer) as server:
        results = each(engine_of(server, concurrency=1), texts)
        with pytest.raises(RequestError):
            predict(engine_of(server), ["bone", "bad"])
        with pytest.raises(RequestError) as caught:
            predict(engine_of(server), ["bad"])
    assert [shown(result) for result in results] == ["bone", 400, 502, "skin"]
    assert isinstance(results[0], Prediction)
    assert results[0].score == pytest.approx(math.exp(-0.5))
    assert "input[" not in caught.value.message


@pytest.mark.parametrize(("reply", "status"), [(refusal(401, "no"), 502), (Reply(waits=True), 504)])
def test_the_answers_before_a_failure_of_the_endpoint_are_kept_and_no_further_text_is_sent(
    reply: Reply, status: int
) -> None:
    with endpoint_server(lambda body, number: reply if number == 1 else label(body)) as server:
        engine = engine_of(server, concurrency=1)
        results = each(engine, ["bone", "skin", "bone"], timeout_s=2)
        assert len(server.bodies) == 2
    assert [shown(result) for result in results] == ["bone", status, status]


def test_an_endpoint_can_be_unloaded_by_the_thread_that_loads_versions() -> None:
    closed = threading.Event()
    with endpoint_server(label) as server:
        engine_of(server).unload()  # no request was sent, so there is no event loop
        engine = engine_of(server)

        async def scenario() -> None:
            await engine.submit(["bone"], client="a")
            classifier: Any = getattr(engine.submit, "__self__")  # noqa: B009
            client = classifier._upstream._connection.client
            await asyncio.to_thread(engine.unload)
            while not client.is_closed:
                await asyncio.sleep(0.001)
            closed.set()

        asyncio.run(asyncio.wait_for(scenario(), 20))
    assert closed.is_set()
