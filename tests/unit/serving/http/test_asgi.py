"""The ASGI application: routes, errors, streams, and the limit on the body size."""

import asyncio
import json
import re
from collections.abc import Mapping
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
        raise RequestError(500, "engine_failed", "failed") from RuntimeError("secret detail")
    content = {
        "bytes": len(body),
        "id": request_id,
        "x_id": x_request_id.get(),
        "caller": caller.get(),
        "path_id": path_id.get(),
    }
    return 200, json.dumps(content).encode()


def _authenticate(headers: Mapping[str, str], route: Route) -> None:
    if route.open:
        return
    if headers["authorization"] != "Bearer good":
        raise RequestError(401, "invalid_api_key", "give a valid API key")
    caller.set("app")


def _app(routes: Mapping[str, Route]) -> ASGIApp:
    return http_app(routes, max_body_bytes=MAX_BODY_BYTES, authenticate=_authenticate)


def _request(
    method: str, path: str, *body: bytes, headers: Mapping[bytes, bytes] = {}
) -> tuple[int, Any, Any]:
    """Return the status, the content and the headers of the response to a body in parts."""
    app = _app(
        {
            "/echo": Route("POST", _echo),
            "/up": Route("GET", _echo, open=True),
            "POST /up": Route("POST", _echo),
            "/things/{id}": Route("GET", _echo),
            "/things/{id}/end": Route("POST", _echo),
        }
    )
    sent_headers = {b"authorization": b"Bearer good"} | dict(headers)
    messages = chunks(*body or (b"",))
    start, content = asyncio.run(exchange(app, method, path, body=messages, headers=sent_headers))
    start_headers = dict(start["headers"])
    assert dict(security_headers()).items() <= start_headers.items()
    assert start_headers[b"content-type"] == b"application/json"
    assert start_headers[b"content-length"] == str(len(content["body"])).encode()
    return start["status"], json.loads(content["body"]), start_headers


def test_all_routes_except_open_ones_need_a_key_before_the_body_is_read() -> None:
    assert _request("POST", "/echo")[1]["caller"] == "app"
    bad = {b"authorization": b"Bearer bad"}
    status, content, _ = _request("POST", "/echo", b"a" * 200, headers=bad)
    assert (status, content["error"]["type"]) == (401, "invalid_api_key")
    assert _request("GET", "/up", headers=bad)[0] == 200


def test_a_path_has_a_route_for_each_method_and_refuses_others_with_the_allowed_ones() -> None:
    assert _request("GET", "/up")[1]["caller"] is None
    assert _request("POST", "/up")[1]["caller"] == "app"
    status, body, headers = _request("PUT", "/up")
    assert (status, body["error"]["type"]) == (405, "wrong_method")
    assert headers[b"allow"] == b"GET, POST"


@pytest.mark.parametrize("headers", [{}, {b"content-length": b"101"}])
def test_a_body_over_the_limit_is_a_413_with_or_without_a_declared_length(
    headers: dict[bytes, bytes],
) -> None:
    assert _request("POST", "/echo", b"a" * 40, b"b" * 60)[1]["bytes"] == 100
    status, body, _ = _request("POST", "/echo", b"a" * 60, b"b" * 41, headers=headers)
    assert (status, body["error"]["type"]) == (413, "body_too_large")


def test_the_id_of_a_request_is_random_and_the_clients_id_is_stored_separately_if_it_is_valid() -> (
    None
):
    def ids(client_id: bytes) -> tuple[str, Any]:
        content = _request("POST", "/echo", headers={b"x-request-id": client_id})[1]
        return content["id"], content["x_id"]

    random = [ids(b"r-1")[0] for _ in range(3)]
    assert len(set(random)) == 3
    assert all(re.fullmatch("[0-9a-f]{32}", request_id) for request_id in random)
    assert ids(b"A.z_9-")[1] == "A.z_9-"
    for invalid in (b"a" * 129, b"a b", b"a\n", b"\xff"):
        assert ids(invalid)[1] is None


def test_a_route_prefix_without_a_slash_leads_to_the_page() -> None:
    client = TestClient(_app({"/": Route("GET", _echo)}), root_path="/a/prefix")
    answer = client.get("/a/prefix", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (307, "prefix/")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_incomplete_body_is_a_408_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_S", 0.01)
    app = _app({"/echo": Route("POST", _echo, open=True)})
    start, content = asyncio.run(exchange(app, "POST", "/echo", body=chunks(b"half", b"")[:1]))
    assert (start["status"], dict(start["headers"])[b"connection"]) == (408, b"close")
    assert json.loads(content["body"])["error"]["type"] == "body_too_slow"


def test_the_details_of_a_failure_are_in_the_log_only(caplog: pytest.LogCaptureFixture) -> None:
    status, body, _ = _request("POST", "/echo", b"break")
    assert status == 500
    (request_id,) = re.findall("[0-9a-f]{32}", body["error"]["message"])
    assert request_id in caplog.text
    assert "secret" not in body["error"]["message"]
    caplog.clear()
    status, body, _ = _request("POST", "/echo", b"fail")
    assert (status, body["error"]["message"]) == (500, "failed")
    (record,) = caplog.records
    assert re.search(r"[0-9a-f]{32} .*failed \(secret detail\)", record.getMessage())
    assert _request("POST", "/echo", b"refuse")[0] == 422
    assert len(caplog.records) == 1


def _stream(*, waits: bool = False) -> tuple[list[Message], bool]:
    """Return the messages of a stream of two letters, and whether the stream was closed.

    It can end with a wait, during which the client disconnects.
    """
    waiting = asyncio.Event()
    is_closed = False

    async def events() -> Events:
        nonlocal is_closed
        try:
            yield b"a"
            yield b"b"
            if waits:
                waiting.set()
                await asyncio.Event().wait()
        finally:
            is_closed = True

    async def answer(_body: bytes, _request_id: str) -> tuple[int, Events]:
        return 200, events()

    app = _app({"/s": Route("POST", answer, watched=True, open=True)})
    sent = asyncio.run(exchange(app, "POST", "/s", body=chunks(b"{}"), disconnect=waiting))
    return sent, is_closed


def test_a_stream_is_sent_event_by_event_and_closed() -> None:
    (start, *bodies), is_closed = _stream()
    headers = dict(start["headers"])
    assert dict(security_headers()).items() <= headers.items()
    assert start["status"] == 200
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    parts = [(body["body"], body.get("more_body", False)) for body in bodies]
    assert parts == [(b"a", True), (b"b", True), (b"", False)]
    assert is_closed
    sent, is_closed = _stream(waits=True)  # the client disconnects
    assert is_closed
    assert all(message.get("more_body", True) for message in sent)
