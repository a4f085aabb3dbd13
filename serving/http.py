"""The HTTP surface of a replica as bare ASGI: routes, a bound on the body, streams, and every refusal as JSON."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Coroutine, Mapping, MutableMapping
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from serving.protocol import Headers, RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
Events = AsyncGenerator[bytes, None]
"""Server-sent events, each whole; begun without a wait in between, and closed whatever happens."""

# What a client may go on sending after its request is refused: read and dropped, so that it gets to read the answer.
DISCARD_BYTES = 64 << 20
BODY_S = 20.0
"""What a body may take to come: as long as HAProxy waits where it holds a body whole (up to 16 KiB)."""

# A page inside somebody else's would ask for them with this origin, and a page's own policy cannot say so.
UNFRAMED: Headers = ((b"content-security-policy", b"frame-ancestors 'none'; base-uri 'none'"),)

_log = logging.getLogger("ray.serve")

asker: ContextVar[str | None] = ContextVar("asker", default=None)
"""Whose key the request that is being answered carries."""
ID = "{id}"
"""Stands in a route for one part of its paths."""
path_id: ContextVar[str] = ContextVar("path_id", default="")
"""What stands for `{id}` in the path of the request that is being answered."""


@dataclass(frozen=True)
class Route:
    """A path's method and what answers it: `(body, request id) -> (status, JSON or events)`."""

    method: str
    answer: Callable[[bytes, str], Awaitable[tuple[int, bytes | Events]]]
    watched: bool = False
    """Whether a client that hangs up cancels the answer: of one that takes long."""
    open: bool = False
    """Whether it is answered to whoever asks, key or none."""
    content_type: bytes = b"application/json"


def http_app(
    routes: dict[str, Route],
    *,
    max_body_bytes: int,
    admit: Callable[[Callable[[bytes], str]], str | None],
    on_startup: Callable[[], Awaitable[None]] | None = None,
    on_shutdown: Callable[[], Awaitable[None]] | None = None,
) -> ASGIApp:
    """An ASGI application over exact paths, or those with a part `{id}`; FastAPI's routing and validation would double
    the cost of a request.

    `admit` takes a request's headers, before its body is read, and tells who asks, or raises RequestError.
    `on_startup` is awaited before the first answer, `on_shutdown` after the last.
    """

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send, {"lifespan.startup": on_startup, "lifespan.shutdown": on_shutdown})
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1003})
            return
        request_id = _header(scope, b"x-request-id").decode("latin-1")
        try:
            route = _find(routes, scope)
            if not route.open:
                asker.set(admit(lambda name: _header(scope, name).decode("latin-1")))
            body = await read_body(scope, receive, max_bytes=max_body_bytes) if route.method == "POST" else b""
        except RequestError as error:
            await _send(send, error.status, error.body, error.headers)
            return
        answering = _answer(route, body, request_id, send)
        await (_while_connected(answering, receive) if route.watched else answering)

    return app


async def read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
    """The request's body; raises RequestError 413 over `max_bytes`, whether or not it declares its length, and 408
    where it has not come within `BODY_S`."""
    try:
        async with asyncio.timeout(BODY_S):
            return await _read_body(scope, receive, max_bytes=max_bytes)
    except TimeoutError:
        told = f"the body had not come whole after {BODY_S:.0f} s; send it again, faster or less of it"
        raise RequestError(408, "body_too_slow", told, headers=((b"connection", b"close"),)) from None


async def _read_body(scope: Scope, receive: Receive, *, max_bytes: int) -> bytes:
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


async def _answer(route: Route, body: bytes, request_id: str, send: Send) -> None:
    """Sends the route's answer; before its first event a stream may still be refused."""
    content_type = Route.content_type
    try:
        status, content = await route.answer(body, request_id)
        if not isinstance(content, bytes):
            await _send_events(send, content)
            return
        headers: Headers = UNFRAMED if route.content_type.startswith(b"text/html") else ()
        content_type = route.content_type
    except RequestError as error:
        status, content, headers = error.status, error.body, error.headers
    except Exception:
        _log.exception("request %s failed", request_id)
        failure = RequestError(500, "internal_error", f"request {request_id} failed; the replica's log says why")
        status, content, headers = failure.status, failure.body, failure.headers
    await _send(send, status, content, headers, content_type=content_type)


async def _while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Runs `work`, which is cancelled when the client hangs up."""
    working, gone = asyncio.create_task(work), asyncio.create_task(_hang_up(receive))
    try:
        await asyncio.wait((working, gone), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        gone.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _hang_up(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def path_of(scope: Scope) -> str:
    """The path within the application, wherever that is mounted."""
    return str(scope["path"])[len(scope.get("root_path", "")) :] or "/"


def _find(routes: dict[str, Route], scope: Scope) -> Route:
    path = path_of(scope)
    template = template_of(routes, path)
    if template is None:
        raise RequestError(404, "unknown_route", f"no route {path}; there are {', '.join(sorted(routes))}")
    route = routes[template]
    if ID in template:
        path_id.set(path.split("/")[template.split("/").index(ID)])
    if scope["method"] != route.method:
        message = f"{path} takes {route.method}, not {scope['method']}"
        raise RequestError(405, "wrong_method", message, headers=((b"allow", route.method.encode()),))
    return route


def template_of(routes: Container[str], path: str) -> str | None:
    """The route that a path is of: its own, or one that has `{id}` for one part of it; None where there is none."""
    if path in routes:
        return path
    parts = path.split("/")
    for place in range(len(parts) - 1, 0, -1):
        template = "/".join([*parts[:place], ID, *parts[place + 1 :]])
        if parts[place] and template in routes:
            return template
    return None


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


async def _send(
    send: Send, status: int, content: bytes, headers: Headers, *, content_type: bytes = Route.content_type
) -> None:
    length = str(len(content)).encode()
    told = [(b"content-type", content_type), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": told})
    await send({"type": "http.response.body", "body": content})


async def _send_events(send: Send, events: Events) -> None:
    headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")]
    begun = False
    async with aclosing(events):
        async for event in events:
            if not begun:
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                begun = True
            await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def _lifespan(receive: Receive, send: Send, hooks: Mapping[str, Callable[[], Awaitable[None]] | None]) -> None:
    while True:
        message = await receive()
        hook = hooks.get(message["type"])
        if hook is not None:
            await hook()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
