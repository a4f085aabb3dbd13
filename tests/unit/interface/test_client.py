"""The client understands the responses, streams and errors of the replicas, and keeps its key to
itself."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from serving.http.asgi import ASGIApp
from serving.replica.chat import Chat
from tailorbird import Client
from tailorbird.config.serving import ServingConfig
from tailorbird.interface.answer import Answer
from tailorbird.interface.client import API_KEY_VARIABLE
from tailorbird.interface.responses import ServiceError
from tests.endpoint_server import Reply, endpoint_server, refusal, stream
from tests.unit.serving.batch_jobs.test_scoring import version
from tests.unit.serving.http.application import application
from tests.unit.serving.replica.fake_engine import PROMPTING, FakeEngine
from tests.unit.serving.replica.loads import config, stored_keys
from tests.unit.serving.replica.test_classifier import new_classifier

URL = "http://127.0.0.1:8000"

Connect = Callable[..., Client]


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Return a function that makes a client of an application, without a server."""

    def client_of(app: ASGIApp, **options: Any) -> Client:
        def transport(*, headers: dict[str, str], **_: object) -> TestClient:
            return TestClient(app, base_url=URL, headers=headers)

        with monkeypatch.context() as patched:
            patched.setattr("tailorbird.interface.client.httpx2.Client", transport)
            return Client(URL + "/", **options)

    return client_of


@pytest.fixture
def key(tmp_path: Path) -> tuple[str, str]:
    """Return a key, and the URI of the file that the service reads."""
    uri, keys = stored_keys(tmp_path, app="")
    return keys["app"], uri


@pytest.fixture
def classifier(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: tuple[str, str]) -> ASGIApp:
    """Return the application of a classifier with a key and a request log."""
    service = new_classifier(monkeypatch, api_keys=key[1], request_log=(tmp_path / "log").as_uri())
    asyncio.run(service.reconfigure(config("one")))
    app: ASGIApp = service.__serve_build_asgi_app__()
    return app


def test_answers_have_the_order_of_the_texts_and_the_ids_for_feedback(
    connect: Connect, classifier: ASGIApp, key: tuple[str, str]
) -> None:
    client = connect(classifier, api_key=key[0])
    answers = client.classify(["x", "y"], attributes={"sex": "f"})
    assert [(answer.input, answer.output, answer.confidence, answer.row) for answer in answers] == [
        ("x", "by one", 0.75, 0),
        ("y", "by one", 0.75, 1),
    ]
    assert answers[0].version == "one"
    assert answers[0].scores is None
    answer = client.classify("x", scores=True)
    assert answer.scores == {"a": 0.75, "b": 0.25}
    client.feedback(answer, "b")
    with pytest.raises(ValueError, match="this answer has no request id"):
        client.feedback(Answer("x", "a", 0.5, "one"), "b")


def test_the_key_is_read_from_the_environment_and_is_in_no_representation(
    connect: Connect, classifier: ASGIApp, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ServiceError, match="answered 401") as refused:
        connect(classifier).classify("x")
    assert (refused.value.status, refused.value.type) == (401, "missing_api_key")
    monkeypatch.setenv(API_KEY_VARIABLE, key[0])
    client = connect(classifier)
    assert client.classify("x").output == "by one"
    assert key[0] not in repr(client) + str(vars(client))
    with pytest.raises(ServiceError, match=r"input: .*text") as invalid:
        client.classify([1])  # type: ignore[list-item]
    assert key[0] not in str(invalid.value)


def test_the_pieces_of_a_streamed_answer_are_the_answer_of_the_listed_model(
    connect: Connect, key: tuple[str, str]
) -> None:
    engine = FakeEngine("a dog")
    engine.version = version(PROMPTING)
    client = connect(application(Chat, ServingConfig(api_keys=key[1]), engine), api_key=key[0])
    (model,) = client.models()
    assert (model.id, model.version, model.kind, model.digest) == (
        "champion",
        engine.version.version,
        engine.version.kind,
        "d",
    )
    conversation = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "what is a dog"},
    ]
    answer = client.chat(conversation)
    assert (answer.input, answer.output, answer.finish_reason) == (
        "what is a dog",
        "a dog",
        "length",
    )
    pieces = list(client.stream(conversation))
    assert len(pieces) > 3
    assert "".join(piece.text for piece in pieces) == answer.output
    last = pieces[-1].answer
    assert last is not None
    assert [piece.answer for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert (last.output, last.finish_reason, last.version) == (
        answer.output,
        "length",
        answer.version,
    )
    assert str(last.request_id).startswith("chatcmpl-")
    with pytest.raises(ServiceError, match="max_tokens") as refused:
        list(client.stream("x", max_tokens=10**6))
    assert refused.value.status == 400


def test_a_failure_within_a_stream_is_raised_after_its_pieces(
    connect: Connect, key: tuple[str, str]
) -> None:
    client = connect(
        application(Chat, ServingConfig(api_keys=key[1]), FakeEngine("a dog", fails_after=3)),
        api_key=key[0],
    )
    texts = []
    with pytest.raises(ServiceError, match="failed within the answer") as failed:
        texts += [piece.text for piece in client.stream("x")]
    assert failed.value.type == "engine_failed"


def test_a_stream_that_ends_early_and_other_servers_are_errors() -> None:
    def answer(body: dict[str, Any], number: int) -> Reply:
        if body.get("stream"):
            return stream(
                [b'data: {"id": "1", "version": "v", "choices": [{"delta": {"content": "a"}}]}\n\n']
            )
        if number == 0:
            return Reply(502, b"<html>Bad Gateway</html>")
        return (
            Reply(content=b'{"object": "list"}')
            if number == 1
            else refusal(503, "loading", Retry_After="7")
        )

    with endpoint_server(answer) as server:
        client = Client(server.url.removesuffix("/v1"), timeout_s=10)
        with pytest.raises(ServiceError, match="answered 502; check the address of the service"):
            client.chat("x")
        with pytest.raises(ServiceError, match="is not a service of this kind: id: Field required"):
            client.chat("x")
        with pytest.raises(ServiceError, match="answered 503: loading") as refused:
            client.chat("x")
        assert refused.value.retry_after_s == 7
        with pytest.raises(ServiceError, match="ended a stream before the end of the answer"):
            list(client.stream("x"))
        client.close()
    with Client(client.url) as gone, pytest.raises(ServiceError, match="cannot be reached"):
        gone.models()


def test_a_stream_is_read_while_the_service_generates_and_closed_at_any_piece() -> None:
    sent = []

    def pieces() -> Any:
        for number in range(10_000):
            sent.append(number)
            yield (
                b'data: {"id": "1", "version": "v", "choices": [{"delta": {"content": "'
                + b"a" * 4096
                + b'"}}]}\n\n'
            )

    with endpoint_server(
        lambda _body, _number: Reply(headers={"Content-Type": "text/event-stream"}, pieces=pieces())
    ) as server:
        client = Client(server.url.removesuffix("/v1"))
        received = client.stream("x")
        assert next(received).text == "a" * 4096
        received.close()  # type: ignore[attr-defined]
        client.close()
    assert len(sent) < 10_000


def test_a_proxy_in_the_environment_does_not_see_requests_without_encryption(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    event = {
        "id": "1",
        "version": "v",
        "choices": [{"message": {"content": "a dog"}, "finish_reason": "stop"}],
    }
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")  # no server listens there
    with endpoint_server(
        lambda _body, _number: Reply(content=json.dumps(event).encode())
    ) as server:
        assert Client(server.url.removesuffix("/v1"), api_key="tb-key").chat("x").output == "a dog"
        assert server.authorizations == ["Bearer tb-key"]


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:8000", "ftp://host", "", "http://:80", "http://host:port", "http://host:99999", "http://host:0",
     "http://[::1", "http://a..b\n", "http://host?x=1", "http://host#x"],
)  # fmt: skip
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="is not the address of a service; give http://HOST:PORT"):
        Client(url)


def test_a_key_that_is_not_printable_is_refused_without_its_text() -> None:
    with pytest.raises(ValueError, match="is not a key") as refused:
        Client(URL, api_key="sécret")
    assert "cret" not in str(refused.value)


def test_a_closed_client_is_an_error(connect: Connect, classifier: ASGIApp) -> None:
    for client in (connect(classifier), Client(URL)):
        client.close()
        client.close()
        with pytest.raises(ValueError, match="is closed; create another client"):
            client.models()
        with pytest.raises(ValueError, match="is closed; create another client"):
            list(client.stream("x"))
