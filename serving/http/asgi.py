"""A replica's ASGI application on Starlette: routes, a limit on the body size, streams, and errors
as JSON.

Starlette adds 6 microseconds per request to bare ASGI. With an encoder of MiniLM's size (uvicorn,
two shared cores), the median throughput is 1.07 times that of bare ASGI with one text per request,
and 0.98 times with 256 texts.
"""

import asyncio
import logging
import re
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    ExitStack,
    nullcontext,
)
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

from starlette import routing
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from serving.http.api_keys import KeyScope
from serving.http.schemas import RequestError
from serving.http.security_headers import DATA_POLICY, security_headers
from serving.limits import FairSlots, client_name

ASGIApp = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]
# server-sent events, one per item; the generator is always closed
Events = AsyncGenerator[bytes, None]

DISCARD_BYTES = 64 << 20
"""Maximum number of bytes to read and discard from a body that is too large, so that the client
reads the response."""
SMALL_BODY_BYTES = 16 << 10  # parsed at once: 8,000 invalid items take about a millisecond
BYTES_PER_S = 10e6
"""Rate at which a replica parses large bodies. To receive and parse 1 MB takes 5 to 20 ms of the
event loop."""
# timeout for a body to arrive, equal to HAProxy's for bodies that it buffers (up to 16 KiB)
BODY_S = 20.0

JSON = "application/json"
HTML = "text/html; charset=utf-8"
JAVASCRIPT = "text/javascript; charset=utf-8"

_log = logging.getLogger("ray.serve")

X_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")  # valid ids of clients; others are replaced
ID_BYTES = 16

# name of the API key of the current request
caller: ContextVar[str | None] = ContextVar("caller", default=None)
x_request_id: ContextVar[str | None] = ContextVar("x_request_id", default=None)
"""Header X-Request-Id of the current request, or None if it is not valid. Serve sets it if the
client does not."""
ID = "{id}"  # placeholder for one path segment in a route
REST = "{id:path}"  # placeholder for the rest of the path, at the end of a route
# value of `{id}` in the path of the current request
path_id: ContextVar[str] = ContextVar("path_id", default="")


class Page(NamedTuple):
    """An HTML page and its Content-Security-Policy."""

    content: bytes
    policy: str


@dataclass(frozen=True)
class Route:
    """The method and the handler of a path."""

    method: str
    answer: Callable[[bytes, str], Awaitable[tuple[int, bytes | Page | Events]]]
    """`(body, request id) -> (status, content, page or events)`."""
    watched: bool | Callable[[], bool] = False
    """True if a disconnect of the client cancels the handler (for long responses). A function is
    called for each request."""
    open: bool = False  # True if the route needs no API key
    # scopes of which a key must have one; empty if any key will do
    scopes: tuple[KeyScope, ...] = ()
    content_type: str = JSON


def http_app(
    routes: Mapping[str, Route],
    *,
    max_body_bytes: int,
    authenticate: Callable[[Mapping[str, str], Route], None],
    admit: Callable[[Request], AbstractContextManager[None]] = lambda _: nullcontext(),
    lifespan: Callable[[Any], AbstractAsyncContextManager[None]] | None = None,
) -> ASGIApp:
    """Return an ASGI application of the routes. A literal path takes precedence over a path with a
    placeholder. A key is a path; before it is a method if the path has another route, for example
    `POST /`.

    `authenticate` receives a request's headers before the body is read, and sets the caller or
    raises RequestError. `admit` is entered next, except for open routes, and left after the
    response; it may raise RequestError too. `lifespan` is that of Starlette.
    """

    by_path = dict[str, dict[str, Route]]()
    for key, route in routes.items():
        by_path.setdefault(path_of(key), {})[route.method] = route

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        # relative links need the slash at the end
        if scope["path"] == scope.get("root_path") and "/" in routes:
            await _redirect(f"{scope['path'].rpartition('/')[2]}/")(scope, receive, send)
            return
        known = ", ".join(sorted(path.replace(REST, ID) for path in by_path))
        message = f"no route {scope['path']}; the routes are {known}"
        await ErrorResponse(RequestError(404, "unknown_route", message))(scope, receive, send)

    turns = FairSlots(1)
    endpoints = [
        Endpoint(
            path=path,
            routes=by_path[path],
            max_body_bytes=max_body_bytes,
            authenticate=authenticate,
            admit=admit,
            turns=turns,
        )
        for path in sorted(by_path, key=lambda path: "{" in path)
    ]
    return routing.Router(
        [routing.Route(endpoint.path, endpoint) for endpoint in endpoints],
        redirect_slashes=False,
        default=unknown,
        lifespan=lifespan,
    )


def path_of(key: str) -> str:
    """Return the path of a key of routes."""
    return key.rpartition(" ")[2]


def with_request_check(
    app: ASGIApp, *, check: Callable[[Mapping[str, str]], None], only_posts: bool = False
) -> ASGIApp:
    """Return the application, which answers only requests whose headers `check` accepts; it raises
    RequestError.

    If `only_posts` is true, requests with other methods are not checked.
    """

    async def checked(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (scope["method"] == "POST" or not only_posts):
            try:
                check(Headers(scope=scope))
            except RequestError as error:
                await ErrorResponse(error)(scope, receive, send)
                return
        await app(scope, receive, send)

    return checked


@dataclass(frozen=True)
class Endpoint:
    """The routes of a path by method, as an ASGI application. Starlette stores it in the scope as
    `endpoint`."""

    path: str
    routes: Mapping[str, Route]
    max_body_bytes: int
    authenticate: Callable[[Mapping[str, str], Route], None]
    admit: Callable[[Request], AbstractContextManager[None]]
    turns: FairSlots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        with ExitStack() as admitted:
            try:
                route = self._route(request.method)
                self.authenticate(request.headers, route)
                if not route.open:
                    admitted.enter_context(self.admit(request))
                if route.method == "POST":
                    body = await read_body(request, max_bytes=self.max_body_bytes)
                else:
                    body = b""
                await self._wait_for_turn(body, receive)
            except RequestError as error:
                await ErrorResponse(error)(scope, receive, send)
                return
            if request.path_params:
                path_id.set(request.path_params["id"])
            answering = _answer(route, body, request, send)
            if callable(route.watched):
                watched = route.watched()
            else:
                watched = route.watched
            await (_while_connected(answering, receive) if watched else answering)

    def _route(self, method: str) -> Route:
        """Return the route of a method. Raises RequestError 405 if there is none."""
        if method not in self.routes:
            allowed = sorted(self.routes)
            message = f"{self.path} does not accept {method}; use {' or '.join(allowed)}"
            headers = {"allow": ", ".join(allowed)}
            raise RequestError(405, "wrong_method", message, headers=headers)
        return self.routes[method]

    async def _wait_for_turn(self, body: bytes, receive: Receive) -> None:
        """Wait until the body may be parsed. Raises RequestError if the client disconnects
        meanwhile."""
        if len(body) <= SMALL_BODY_BYTES:
            return
        turn = large_body_turn(self.turns, client_name(), num_bytes=len(body))
        if not await _while_connected(turn, receive):
            message = "the client closed the connection before its body was parsed"
            raise RequestError(400, "disconnected", message)


async def large_body_turn(turns: FairSlots, client: str, *, num_bytes: int) -> None:
    """Wait for the client's turn to parse a large body. After each turn is a pause, in which other
    requests run.

    Parsing holds the GIL, so in a thread it would delay other requests as much as in the event
    loop.
    """
    await turns.acquire(client, cost=num_bytes)
    asyncio.get_running_loop().call_later(num_bytes / BYTES_PER_S, turns.release, client)


async def read_body(request: Request, *, max_bytes: int) -> bytes:
    """Return the request's body.

    Raises RequestError 413 if the body has more than `max_bytes`, with or without a declared
    length, and 408 if it does not arrive within `BODY_S`.
    """
    declared = request.headers.get("content-length", "")
    is_too_large = declared.isdecimal() and int(declared) > max_bytes
    chunks = list[bytes]()
    total = 0
    try:
        async with asyncio.timeout(BODY_S):
            async for chunk in request.stream():
                total += len(chunk)
                is_too_large = is_too_large or total > max_bytes
                if not is_too_large:
                    chunks.append(chunk)
                elif total > DISCARD_BYTES:
                    break
    except TimeoutError:
        message = (
            f"the body did not arrive within {BODY_S:.0f} s; send a smaller body or use a faster "
            "connection"
        )
        raise RequestError(408, "body_too_slow", message, headers={"connection": "close"}) from None
    except ClientDisconnect:
        message = "the client closed the connection before the body ended"
        raise RequestError(400, "disconnected", message) from None
    if is_too_large:
        message = f"the body has more than {max_bytes} bytes; send fewer or shorter texts"
        raise RequestError(413, "body_too_large", message)
    return b"".join(chunks)


async def _answer(route: Route, body: bytes, request: Request, send: Send) -> None:
    """Send the route's response. An error before the first event of a stream becomes an error
    response."""
    # Clients must not choose the id: it decides the arm and the audit, and feedback refers to it.
    request_id = secrets.token_hex(ID_BYTES)
    sent = request.headers.get("x-request-id", "")
    x_request_id.set(sent if X_REQUEST_ID.fullmatch(sent) else None)
    response: Response
    events: Events | None = None
    try:
        status, content = await route.answer(body, request_id)
        policy = DATA_POLICY
        if isinstance(content, Page):
            content, policy = content
        if isinstance(content, bytes):
            response = Response(content, status, media_type=route.content_type)
        else:
            events = content
            content = _with_first(await anext(events), events)
            response = StreamingResponse(content, status, media_type="text/event-stream")
        response.raw_headers.extend(security_headers(policy))
    except RequestError as error:
        if error.status >= 500:
            _log.error(
                "request %s failed with status %d: %s", request_id, error.status, error.reason
            )
        response = ErrorResponse(error)
    except Exception:
        _log.exception("request %s failed", request_id)
        message = f"request {request_id} failed; see the replica's log"
        response = ErrorResponse(RequestError(500, "internal_error", message))
    try:
        await response(request.scope, request.receive, send)
    finally:
        if events is not None:
            await events.aclose()


async def _with_first(event: bytes, events: Events) -> Events:
    yield event
    async for next_event in events:
        yield next_event


class ErrorResponse(Response):
    """An error as JSON, with the security headers. It stores the error in the scope, as `error`."""

    def __init__(self, error: RequestError) -> None:
        super().__init__(error.body, error.status, error.headers, JSON)
        self.raw_headers.extend(security_headers())
        self._error = error

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["error"] = self._error
        await super().__call__(scope, receive, send)


def _redirect(location: str) -> Response:
    """Return a redirect to a relative address, with the security headers."""
    response = RedirectResponse(location)
    response.raw_headers.extend(security_headers())
    return response


async def _while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> bool:
    """Run `work`, and cancel it if the client disconnects. Return whether it was not cancelled."""
    tasks = asyncio.create_task(work), asyncio.create_task(_wait_for_disconnect(receive))
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return not tasks[0].cancelled()


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
