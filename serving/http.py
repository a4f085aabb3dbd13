"""The HTTP surface of a replica as bare ASGI: routes, a bound on the body, and every refusal as JSON."""

import logging
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from typing import Any

from serving.protocol import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

# What a client may go on sending after its request is refused: read and dropped, so that it gets to read the answer.
DISCARD_BYTES = 64 << 20

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Route:
    """A path's method and what answers it: `(body, request id) -> (status, JSON)`."""

    method: str
    answer: Callable[[bytes, str], Awaitable[tuple[int, bytes]]]


def http_app(routes: dict[str, Route], *, max_body_bytes: int) -> ASGIApp:
    """An ASGI application over exact paths; FastAPI's routing and validation would double the cost of a request."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        extra: list[tuple[bytes, bytes]] = []
        request_id = _header(scope, b"x-request-id").decode("latin-1")
        try:
            route = _find(routes, scope, extra)
            body = await read_body(scope, receive, max_bytes=max_body_bytes) if route.method == "POST" else b""
            status, content = await route.answer(body, request_id)
        except RequestError as error:
            status, content = error.status, error.body
        except Exception:
            _log.exception("request %s failed", request_id)
            failure = RequestError(500, "internal_error", f"request {request_id} failed; the replica's log says why")
            status, content = failure.status, failure.body
        await _send(send, status, content, extra)

    return app


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """The request's body; raises RequestError 413 over `max_bytes`, whether or not it declares its length."""
    declared = _header(scope, b"content-length")
    total = 0
    chunks: list[bytes] = []
    too_large = declared.isdigit() and int(declared) > max_bytes
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "disconnected", "the client closed the connection before the body ended")
        chunk = message.get("body", b"")
        total += len(chunk)
        too_large = too_large or total > max_bytes
        if too_large:
            chunks.clear()
        else:
            chunks.append(chunk)
        if not message.get("more_body", False) or total > DISCARD_BYTES:
            break
    if too_large:
        raise RequestError(413, "body_too_large", f"the body is over {max_bytes} bytes; send fewer or shorter texts")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _find(routes: dict[str, Route], scope: Scope, extra: list[tuple[bytes, bytes]]) -> Route:
    path = str(scope["path"])[len(scope.get("root_path", "")) :]
    route = routes.get(path)
    if route is None:
        raise RequestError(404, "unknown_route", f"no route {path}; there are {', '.join(sorted(routes))}")
    if scope["method"] != route.method:
        extra.append((b"allow", route.method.encode()))
        raise RequestError(405, "wrong_method", f"{path} takes {route.method}, not {scope['method']}")
    return route


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


async def _send(send: Send, status: int, content: bytes, extra: list[tuple[bytes, bytes]]) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode()), *extra]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
