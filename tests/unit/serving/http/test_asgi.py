"""The ASGI application: routes, errors, streams, and the limit on the body size."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from serving.http import asgi
from serving.http.asgi import ASGIApp, Events, Route, caller, http_app, path_id, x_request_id
from serving.http.schemas import RequestError
from serving.http.security_headers import security_headers
from tests.unit.serving.http.application import chunks, exchange

MAX_BODY_BYTES = 100


async def _echo(body: bytes, request_id: str) -> tuple[int, bytes]:
    if body == b"refuse":
        raise RequestError(422, "invalid_request", "refused")
    if body == b"break":
        raise RuntimeError("secret detail")
    if body == b"fail":
        raise RequestError(500, "engine_failed", "the engine failed") from RuntimeError(
            "secret detail"
        )
    content = {"bytes": len(body), "id": request_id, "x_id": x_request_id.get()} | (
        {"caller": caller.get()} if body == b"who" else {}
    )
    content |= {"path_id": path_id.get()} if path_id.get() else {}
    return 200, json.dumps(content).encode()


def _authenticate(headers: Mapping[str, str], route: Route) -> None:
    if route.open:
        return
    if headers["authorization"] != "Bearer good":
        raise RequestError(401, "invalid_api_key", "give a valid API key")
    caller.set("app")


def _app(routes: Mapping[str, Route], **options: Any) -> ASGIApp:
    defaults: dict[str, Any] = {
        "max_body_bytes": MAX_BODY_BYTES,
        "authenticate": lambda _headers, _route: None,
    }
    return http_app(routes, **(defaults | options))


def _request(
    method: str,
    path: str,
    *body: bytes,
    headers: Mapping[bytes, bytes] = {},
    **options: Any,
) -> tuple[int, Any, Any]:
    """Return the status, the content and the headers of the response to a body in parts."""
    routes = {
        "/echo": Route("POST", _echo),
        "/up": Route("GET", _echo, open=True),
        "/things/{id}": Route("GET", _echo),
        "/things/{id}/end": Route("POST", _echo),
    }
    app = _app(routes, **options)
    messages = chunks(*body or (b"",))
    start, content = asyncio.run(
        exchange(
            app,
            method,
            f"/prefix{path}",
            root_path="/prefix",
            body=messages,
            headers={b"x-request-id": b"r-1"} | dict(headers),
        )
    )
    start_headers = dict(start["headers"])
    assert dict(security_headers()).items() <= start_headers.items()
    assert start_headers[b"content-type"] == b"application/json"
    assert start_headers[b"content-length"] == str(len(content["body"])).encode()
    return start["status"], json.loads(content["body"]), start_headers


def test_all_routes_except_open_ones_need_a_key() -> None:
    def request(method: str, path: str, authorization: bytes, body: bytes = b"") -> Any:
        headers = {b"authorization": authorization}
        return _request(method, path, body, headers=headers, authenticate=_authenticate)

    assert request("POST", "/echo", b"Bearer good")[0] == 200
    assert request("POST", "/echo", b"Bearer good", b"who")[1]["caller"] == "app"
    status, content, _ = request("POST", "/echo", b"Bearer bad", b"a" * 200)
    assert (status, content["error"]["type"]) == (401, "invalid_api_key")
    assert request("POST", "/echo", b"")[0] == 401
    assert request("GET", "/up", b"")[0] == 200


def test_a_route_prefix_without_a_slash_leads_to_the_page() -> None:
    client = TestClient(_app({"/": Route("GET", _echo)}), root_path="/a/prefix")
    answer = client.get("/a/prefix", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "prefix/")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_body_in_chunks_is_concatenated() -> None:
    status, content, _ = _request("POST", "/echo", b"a" * 40, b"b" * 60)
    assert (status, content["bytes"]) == (200, 100)


def test_an_incomplete_body_is_a_408_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_S", 0.01)
    app = _app({"/echo": Route("POST", _echo)})
    start, content = asyncio.run(exchange(app, "POST", "/echo", body=chunks(b"half", b"")[:1]))
    assert (start["status"], dict(start["headers"])[b"connection"]) == (408, b"close")
    assert json.loads(content["body"])["error"]["type"] == "body_too_slow"


@pytest.mark.parametrize("headers", [{}, {b"content-length": b"101"}])
def test_a_body_over_the_limit_is_a_413_with_or_without_a_declared_length(
    headers: dict[bytes, bytes],
) -> None:
    status, body, _ = _request("POST", "/echo", b"a" * 60, b"b" * 41, headers=headers)
    assert (status, body["error"]["type"]) == (413, "body_too_large")


def test_an_unknown_route_or_method_is_an_error_that_names_what_exists() -> None:
    status, body, _ = _request("GET", "/nowhere")
    assert status == 404
    assert "/echo, /things/{id}, /things/{id}/end, /up" in body["error"]["message"]
    status, _, headers = _request("GET", "/echo")
    assert (status, headers[b"allow"]) == (405, b"POST")


def test_the_id_of_a_request_is_random_and_the_clients_id_is_stored_separately_if_it_is_valid() -> (
    None
):
    def ids(client_id: bytes) -> tuple[str, Any]:
        content = _request("POST", "/echo", headers={b"x-request-id": client_id})[1]
        return content["id"], content["x_id"]

    random = [ids(b"r-1")[0] for _ in range(3)]
    assert len({*random, "r-1"}) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in random)
    for valid in (b"r-1", b"A.z_9-", b"a" * 128):
        assert ids(valid)[1] == valid.decode()
    for invalid in (b"a" * 129, b"", b"a b", b"a\nb", b"a\n", b"a|b", "é".encode(), b"\xff"):
        assert ids(invalid)[1] is None


def test_the_details_of_a_failure_are_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    status, body, _ = _request("POST", "/echo", b"break")
    assert status == 500
    (request_id,) = re.findall("[0-9a-f]{32}", body["error"]["message"])
    assert request_id in caplog.text
    assert "r-1" not in body["error"]["message"]
    assert "secret" not in body["error"]["message"]
    caplog.clear()
    status, body, _ = _request("POST", "/echo", b"fail")
    assert (status, body["error"]["message"]) == (500, "the engine failed")
    (record,) = caplog.records
    assert re.search(r"[0-9a-f]{32} .*the engine failed \(secret detail\)", record.getMessage())
    assert _request("POST", "/echo", b"refuse")[0] == 422
    assert len(caplog.records) == 1


class Streaming:
    """A handler that streams two letters; it can raise an error first, or wait until it is
    cancelled."""

    def __init__(self, *, breaks: bool = False, waits: bool = False) -> None:
        self.breaks, self.waits = breaks, waits
        self.waiting = asyncio.Event()
        self.closed = False

    async def answer(self, _body: bytes, _request_id: str) -> tuple[int, Events]:
        return 200, self._events()

    async def _events(self) -> Events:
        try:
            if self.breaks:
                raise RequestError(503, "engine_stopped", "no engine", headers={"retry-after": "2"})
            for letter in (b"a", b"b"):
                yield letter
            if self.waits:
                self.waiting.set()
                await asyncio.Event().wait()
        finally:
            self.closed = True


def _stream(streaming: Streaming) -> list[Message]:
    """Return the messages sent to a client, which disconnects when the stream waits."""
    app = _app({"/s": Route("POST", streaming.answer, watched=True)})
    body = chunks(b"{}")
    return asyncio.run(exchange(app, "POST", "/s", body=body, disconnect=streaming.waiting))


def test_a_stream_is_sent_event_by_event() -> None:
    start, *bodies = _stream(Streaming())
    assert dict(security_headers()).items() <= dict(start["headers"]).items()
    assert (start["status"], dict(start["headers"])[b"content-type"]) == (
        200,
        b"text/event-stream; charset=utf-8",
    )
    assert [(body["body"], body.get("more_body", False)) for body in bodies] == [
        (b"a", True),
        (b"b", True),
        (b"", False),
    ]


def test_a_stream_that_fails_is_an_error_response_and_one_without_a_client_is_closed() -> None:
    start, body = _stream(Streaming(breaks=True))
    assert (start["status"], dict(start["headers"])[b"retry-after"]) == (503, b"2")
    assert json.loads(body["body"])["error"]["type"] == "engine_stopped"
    streaming = Streaming(waits=True)
    sent = _stream(streaming)  # the client disconnects
    assert streaming.closed
    assert all(message.get("more_body", True) for message in sent)


def test_the_lifespan_of_the_application_is_entered_and_left() -> None:
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    sent: list[str] = []

    async def receive() -> Message:
        return messages.pop(0)

    async def send(message: Message) -> None:
        sent.append(message["type"])

    @asynccontextmanager
    async def lifespan(_app: object) -> AsyncIterator[None]:
        sent.append("up")
        yield
        sent.append("down")

    asyncio.run(_app({}, lifespan=lifespan)({"type": "lifespan"}, receive, send))
    assert sent == ["up", "lifespan.startup.complete", "down", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/things/7", 200),
        ("POST", "/things/7/end", 200),
        ("POST", "/things/7", 405),
        ("GET", "/things/", 404),
        ("POST", "/things//end", 404),
        ("GET", "/things/7/8", 404),
        ("GET", "/echo/7", 404),
    ],
)
def test_an_id_matches_exactly_one_path_segment(method: str, path: str, status: int) -> None:
    answered, content, _ = _request(method, path)
    assert answered == status
    if status == 200:
        assert content["path_id"] == "7"
