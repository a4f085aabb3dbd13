"""Middleware between the HTTP server of a replica and Ray Serve, written for Ray 2.60.

Serve parses headers before it calls the application: it answers bytes that are not UTF-8 with
status 500, and labels metrics with the method. Replicas load this middleware by `SETTINGS`, which
`serving.autoscaling` sets. It takes 6 microseconds for a request with nine headers.
"""

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.config import WS_PROTOCOLS

from serving.http.api_keys import LOCAL_HOST
from serving.http.asgi import X_REQUEST_ID, ErrorResponse
from serving.http.schemas import LOCAL, RequestError
from serving.http.security_headers import MARK, security_headers

SETTINGS = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.http.server_middleware:middlewares",
    # By default, uvicorn takes the client's address from X-Forwarded-For if HAProxy is on the same
    # host. HAProxy passes this header unchanged, so clients would choose their address.
    "FORWARDED_ALLOW_IPS": "",
}
"""Environment variables of replicas."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CONTROL_HEADERS = frozenset(
    {
        b"x-request-timeout-seconds",
        b"x-request-disconnect-disabled",
        b"x-session-id",
        b"serve-multiplexed-model-id",
    }
)
"""Headers with which a client controls Serve, for example continues a request after it has
disconnected. Serve reads underscores as dashes."""
REQUEST_ID = b"x-request-id"
SERVES_PATHS = "/-/"
"""Prefix of the paths that Serve answers itself: the health check and the routes."""
SERVE_ERRORS = {
    404: ("unknown_route", "no application has this path"),
    408: ("timeout", "the request took longer than Serve's limit"),
    429: ("too_many_requests", "the service has too many requests; retry later"),
    499: ("disconnected", "the client closed the connection"),
    503: ("not_available", "no replica is available; retry later"),
}
"""Types and messages of errors that Serve sends as text, by status."""

UNREAD_BODY_S = 1.0
"""Timeout for the rest of a body that the application has not read, for example of a request
without a valid key. After it, the connection is closed with the response."""
UNREAD_BODY_BYTES = 1 << 20  # maximum number of bytes of this rest to discard

_log = logging.getLogger("ray.serve")

Headers = list[tuple[bytes, bytes]]


def middlewares() -> list[Middleware]:
    """Return the middleware in the form that Serve expects.

    Turn off WebSockets in uvicorn, which never answers a POST request that asks for one.
    """
    WS_PROTOCOLS["auto"] = WS_PROTOCOLS["none"]
    return [Middleware(ServerMiddleware)]


class ServerMiddleware:
    """Refuse requests that Serve cannot parse, remove headers that control Serve, and send Serve's
    errors as JSON.

    Serve's own paths are answered only for names of this machine, if the client is on it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(scope["headers"], receive)
        headers = for_serve(scope["headers"])
        try:
            require_parsable(scope["method"], headers)
            require_local_host(scope)
        except RequestError as error:
            await ErrorResponse(error)(scope, receive, body.sender(send))
            return
        receive, send = body.receive, body.sender(send)
        is_started = False
        is_replaced = False

        async def send_json(message: Message) -> None:
            """Send a message, or the JSON of an error in place of Serve's text."""
            nonlocal is_started, is_replaced
            if message["type"] != "http.response.start":
                if not is_replaced:
                    await send(message)
                return
            is_started = True
            serve_headers = [(bytes(name), bytes(value)) for name, value in message["headers"]]
            if MARK in serve_headers:
                await send(message)
            elif message["status"] < 400:
                await send({**message, "headers": [*serve_headers, *security_headers()]})
            else:
                is_replaced = True
                await _serve_error(message["status"], serve_headers)(scope, receive, send)

        try:
            await self._app({**scope, "headers": headers}, receive, send_json)
        except Exception:
            if is_started:
                raise
            _log.exception("Serve failed to answer a request")
            failure = RequestError(
                500, "internal_error", "the request failed; see the replica's log"
            )
            await ErrorResponse(failure)(scope, receive, send)


class _Body:
    """The body of a request, which need not be read before the response."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        fields = dict(headers)
        self._ended = fields.get(b"content-length", b"0") == b"0" and (
            b"transfer-encoding" not in fields
        )
        # with `Expect: 100-continue`, the client sends the body only when it is read
        self._expects_continue = b"expect" in fields
        self._receive = receive

    async def receive(self) -> Message:
        message = await self._receive()
        self._ended = self._ended or not message.get("more_body", False)
        return message

    def sender(self, send: Send) -> Send:
        """Return `send`, which discards the rest of the body before the response. If the rest is
        too slow or too large, the response closes the connection."""

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._ended:
                await self._discard()
                if not self._ended:
                    close = (b"connection", b"close")
                    message = {**message, "headers": [*message["headers"], close]}
            await send(message)

        return send_after_body

    async def _discard(self) -> None:
        """Read the rest of the body within `UNREAD_BODY_S`, up to `UNREAD_BODY_BYTES`."""
        num_bytes = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(0 if self._expects_continue else UNREAD_BODY_S):
                while not self._ended and num_bytes <= UNREAD_BODY_BYTES:
                    num_bytes += len((await self.receive()).get("body", b""))


def _serve_error(status: int, headers: Headers) -> ErrorResponse:
    """Return an error of Serve as JSON, with Serve's headers."""
    type, text = SERVE_ERRORS.get(status, ("error", "Ray Serve refused the request"))
    response = ErrorResponse(RequestError(status, type, text))
    response.raw_headers.extend(
        header for header in headers if header[0] not in (b"content-type", b"content-length")
    )
    return response


def require_parsable(method: str, headers: Headers) -> None:
    """Raise RequestError 405 for an unknown method, and 400 for a header that is not UTF-8."""
    if method not in METHODS:
        allowed = ", ".join(sorted(METHODS))
        raise RequestError(
            405, "wrong_method", f"unknown method; use one of {allowed}", headers={"allow": allowed}
        )
    for name, value in headers:
        try:
            name.decode()
            value.decode()
        except UnicodeDecodeError:
            message = f"header {name.decode(errors='replace')} is not UTF-8"
            raise RequestError(400, "invalid_header", message) from None


def require_local_host(scope: Scope) -> None:
    """Raise RequestError 403 for one of Serve's paths, if a client on this machine names another
    host.

    A page of another site can point a name to 127.0.0.1. Health checks of HAProxy have no host.
    """
    server = scope.get("server")
    if not scope["path"].startswith(SERVES_PATHS) or server is None or server[0] not in LOCAL:
        return
    for name, value in scope["headers"]:
        if name.lower() == b"host" and not LOCAL_HOST.fullmatch(value.decode("latin-1").lower()):
            message = "Serve's own paths are answered only for 127.0.0.1 and localhost"
            raise RequestError(403, "foreign_page", message)


def for_serve(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Return the headers without those that control Serve, and without ids that are not valid."""
    return [(name, value) for name, value in headers if _is_passed(name.lower(), value)]


def _is_passed(name: bytes, value: bytes) -> bool:
    if name == REQUEST_ID:  # Serve generates an id if there is none
        return X_REQUEST_ID.fullmatch(value.decode("latin-1")) is not None
    return name.replace(b"_", b"-") not in CONTROL_HEADERS
