"""The middleware in front of Serve: no header makes the server answer 500, and all errors have one
format.

The server is the one that Serve starts in a replica. Behind the middleware, Serve's own functions
parse the headers.
"""

import asyncio
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.serve._private import http_util
from ray.serve.config import HTTPOptions
from starlette.types import Message, Receive, Scope, Send

from serving.http.asgi import ASGIApp
from serving.http.schemas import RequestError
from serving.http.security_headers import MARK, security_headers
from serving.http.server_middleware import (
    CONTROL_HEADERS,
    METHODS,
    SETTINGS,
    ServerMiddleware,
    require_local_host,
)
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig
from tests.haproxy import error_type, free_ports, parsed, send
from tests.unit.serving.http.application import application, exchange

NUM_FUZZED = 400
NAMES = tuple(
    b"Host Origin Authorization Content-Type Content-Length Transfer-Encoding Expect Connection "
    b"Upgrade Accept Cookie Range X-Forwarded-For X-Request-Id traceparent X_Session_Id x-session-id "
    b"x-request-timeout-seconds x-request-disconnect-disabled serve_multiplexed_model_id "
    b"Serve-Multiplexed-Model-Id RAY_SERVE_X X-Other Sec-WebSocket-Key".split()
)
VALUES = (
    *b"http://[ //[::1 \xff\xfe \xc3\x28 \xc2\xb2 \xb2 nan -1 1e999 ?1".split(),
    b"",
)
UVICORN = b"Invalid HTTP request received."
"""The only error that is not JSON: uvicorn's own, for bytes that are not HTTP."""


def _serve(app: ASGIApp) -> ASGIApp:
    """Return the application behind the functions with which Serve's replica and fallback proxy
    parse headers."""

    async def parse(scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        http_util.parse_request_timeout_header(headers, None)
        http_util.parse_disconnect_disabled_header(headers)
        http_util.parse_session_id_header(headers)
        for name, value in headers.items():
            if (
                name.decode().lower().replace("-", "_") == "serve_multiplexed_model_id"
                or name == b"x-request-id"
            ):
                value.decode()
        await app(scope, receive, send)

    return parse


@contextmanager
def _server(app: ASGIApp) -> Iterator[int]:
    """Run the HTTP server of a replica in a thread, with the middleware that replicas load by the
    setting."""
    (port,), loop, started = free_ports(1), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        task, server = await http_util.start_asgi_http_server(app, options, event_loop=loop)
        while not server.started:
            await asyncio.sleep(0.01)
        started.set()
        while thread_runs:
            await asyncio.sleep(0.05)
        server.should_exit = True
        await task

    thread_runs = [True]
    with pytest.MonkeyPatch.context() as patched:
        for name, value in SETTINGS.items():
            patched.setenv(name, value)  # uvicorn reads it when the server starts
            patched.setattr(http_util, name, value, raising=False)  # Ray has read it
        options = http_util.configure_http_middlewares(HTTPOptions(host="127.0.0.1", port=port))
        thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
        thread.start()
        assert started.wait(30)
    try:
        yield port
    finally:
        thread_runs.clear()
        thread.join(30)
        loop.close()


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with _server(_serve(application(Classifier, ServingConfig()))) as port:
        yield port


def _ask(port: int, *lines: bytes, first: bytes = b"GET /healthz HTTP/1.1") -> bytes:
    return send(port, b"\r\n".join([first, *lines, b"connection: close", b"", b""]))


def test_a_client_does_not_choose_its_address() -> None:
    async def address(scope: Scope, receive: Receive, send: Send) -> None:
        await _answering(scope["client"][0], status=200)(scope, receive, send)

    with _server(address) as port:
        answer = _ask(port, b"host: localhost", b"x-forwarded-for: 10.9.9.9")
        assert b"127.0.0.1" in parsed(answer)[2]
        assert b"10.9.9.9" not in answer


def test_an_unknown_method_is_refused_with_the_allowed_ones(port: int) -> None:
    answer = _ask(port, b"host: localhost", first=b"TRACE / HTTP/1.1")
    assert error_type(answer) == (405, "wrong_method")
    for method in sorted(METHODS - {"GET", "HEAD"}):
        answer = _ask(port, b"host: localhost", first=b"%s /healthz HTTP/1.1" % method.encode())
        assert parsed(answer)[1]["allow"] == "GET"


@pytest.mark.parametrize(
    "header",
    [
        b"connection: upgrade, close\r\nupgrade: websocket\r\nsec-websocket-key: dGhlIHNhbXBsZQ==",
        b"connection: upgrade, http2-settings, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk",
        b"connection: te, close\r\nte: trailers",
        b"keep-alive: timeout=600",
        b"proxy-authorization: Basic YTpi",
        b"proxy-connection: keep-alive",
        b"trailer: x-end",
    ],
)
def test_each_method_is_answered_with_each_header_for_one_connection(
    port: int, header: bytes
) -> None:
    for method in sorted(METHODS):
        lines = (
            b"%s /healthz HTTP/1.1" % method.encode(),
            b"host: localhost",
            b"content-length: 2",
        )
        request = b"\r\n".join((*lines, b"connection: close", header, b"", b"{}"))
        status, _, _ = parsed(send(port, request))
        assert status == (200 if method == "GET" else 405), method


@pytest.mark.parametrize("length", [b"content-length: 90000", b"transfer-encoding: chunked"])
def test_a_refused_request_does_not_keep_its_connection_by_a_slow_body(
    port: int, length: bytes
) -> None:
    first = b"POST /healthz HTTP/1.1\r\nhost: localhost\r\n"  # wrong method, so no body is read
    answer = send(port, first + length + b"\r\n\r\n")
    assert parsed(answer)[:2] == (405, parsed(answer)[1] | {"connection": "close"})


def test_the_connection_of_a_refused_request_is_used_again_if_its_body_has_arrived(
    port: int,
) -> None:
    refused = b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2\r\n\r\n{}"
    answers = send(
        port, refused + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
    )
    assert answers.count(b"HTTP/1.1 ") == 2


@pytest.mark.parametrize(
    ("server", "host", "is_allowed"),
    [
        ("10.0.0.7", b"service.example", True),
        ("127.0.0.1", b"LOCALHOST", True),
        ("127.0.0.1", b"127.0.0.1:8000", True),
        ("127.0.0.1", b"localhost.evil.example", False),
    ],
)
def test_serves_own_paths_are_answered_on_loopback_only_for_its_names(
    server: str, host: bytes, is_allowed: bool
) -> None:
    scope = {"path": "/-/routes", "headers": [(b"host", host)], "server": (server, 8000)}
    with nullcontext() if is_allowed else pytest.raises(RequestError):
        require_local_host(scope)
    require_local_host(scope | {"path": "/v1/models"})
    require_local_host(scope | {"headers": []})  # a health check of HAProxy


def _lines() -> st.SearchStrategy[list[bytes]]:
    """Return a strategy of one to four headers, whose values are bytes that the HTTP parser
    accepts, or special."""
    noise = st.lists(st.integers(0x20, 0xFF), max_size=6).map(bytes)
    line = st.tuples(st.sampled_from(NAMES), st.sampled_from(VALUES) | noise).map(b": ".join)
    return st.lists(line, min_size=1, max_size=4)


@settings(max_examples=NUM_FUZZED, derandomize=True, deadline=None, database=None)
@given(lines=_lines(), host=st.booleans(), path=st.sampled_from((b"/", b"/readyz", b"/nowhere")))
def test_no_header_makes_the_server_answer_500(
    port: int, lines: list[bytes], host: bool, path: bytes
) -> None:
    sent = [b"Host: localhost", *lines] if host else lines
    answer = _ask(port, *sent, first=b"GET %s HTTP/1.1" % path)
    status, headers, content = parsed(answer)
    if content == UVICORN:
        assert status == 400
        return
    assert status < 500 or content.startswith(b'{"status":"loading"')
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    if 400 <= status < 500:
        assert error_type(answer)[0] == status


def _messages(app: ASGIApp, headers: Mapping[bytes, bytes] = {}) -> list[Message]:
    return asyncio.run(exchange(ServerMiddleware(app), "GET", "/", headers=headers))


def _answering(content: Any, *, status: int, headers: Any = None) -> ASGIApp:
    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        for message in http_util.convert_object_to_asgi_messages(
            content, status_code=status, extra_headers=headers
        ):
            await send(message)

    return app


def test_serves_answers_become_json_errors_with_security_headers() -> None:
    for status in (404, 418):
        start, body = _messages(
            _answering("Request dropped", status=status, headers=[(b"retry-after", b"2")])
        )
        headers = dict(start["headers"])
        assert (start["status"], headers[b"retry-after"]) == (status, b"2")
        assert headers[b"content-type"] == b"application/json"
        assert headers[b"content-length"] == str(len(body["body"])).encode()
        assert set(json.loads(body["body"])["error"]) == {"message", "type", "param", "code"}
        assert dict(security_headers()).items() <= headers.items()
    start, body = _messages(_answering("success", status=200))
    assert body["body"] == b"success"
    assert dict(security_headers()).items() <= dict(start["headers"]).items()


def test_the_applications_answers_are_unchanged_and_an_exception_is_a_500() -> None:
    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": [MARK]})
        await send({"type": "http.response.body", "body": b"loading"})

    start, body = _messages(answer)
    assert (start["headers"], body["body"]) == ([MARK], b"loading")

    async def fail(_scope: Scope, _receive: Receive, _send: Send) -> None:
        raise RuntimeError("secret detail")

    start, body = _messages(fail)
    assert (start["status"], json.loads(body["body"])["error"]["type"]) == (500, "internal_error")
    assert b"secret" not in body["body"]


def test_headers_that_control_serve_and_ids_that_are_not_valid_are_removed() -> None:
    received: list[bytes] = []

    async def app(scope: Scope, _receive: Receive, send: Send) -> None:
        received.extend(name for name, _ in scope["headers"])
        await _answering("", status=200)(scope, _receive, send)

    underscored = [name.replace(b"-", b"_") for name in CONTROL_HEADERS]
    _messages(
        app,
        dict.fromkeys([*CONTROL_HEADERS, *underscored], b"1")
        | {b"x-request-id": b"a b", b"x-other": b"1"},
    )
    assert received == [b"x-other"]
    _messages(app, {b"x-request-id": b"A.z_9-"})
    assert received == [b"x-other", b"x-request-id"]


def test_the_removed_headers_are_those_that_serve_reads() -> None:
    from ray.serve._private import constants

    names = (
        constants.SERVE_HTTP_REQUEST_TIMEOUT_S_HEADER,
        constants.SERVE_HTTP_REQUEST_DISCONNECT_DISABLED_HEADER,
        constants.SERVE_SESSION_ID,
        constants.SERVE_MULTIPLEXED_MODEL_ID,
    )
    assert {name.replace("_", "-").encode() for name in names} == CONTROL_HEADERS
