"""The console of a registry as a local server, for the user who starts it."""

import hmac
import secrets
import socket
from contextlib import closing, suppress

import uvicorn
from starlette.types import Receive, Scope, Send

from serving.http.api_keys import require_local_caller
from serving.http.asgi import ASGIApp, ErrorResponse, http_app, with_request_check
from serving.http.schemas import RequestError
from serving.pages.console import console_routes
from tailorbird.console.site import Site

HOST = "127.0.0.1"
SECRET_BYTES = 16


def console_app(registry: str, *, secret: str) -> ASGIApp:
    """Return the application of a console, whose paths begin with a secret.

    Other users of the machine can connect to the server too, and it reads the registry with the
    rights of its user.
    """
    routes = console_routes(Site(registry.rstrip("/")))
    pages = http_app(routes, max_body_bytes=0, authenticate=lambda _headers, _route: None)

    async def behind_secret(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            first, _, rest = scope["path"].removeprefix("/").partition("/")
            if not hmac.compare_digest(first.encode(), secret.encode()):
                message = "open the address that `tailorbird console` has printed"
                await ErrorResponse(RequestError(403, "wrong_address", message))(
                    scope, receive, send
                )
                return
            scope = {**scope, "path": f"/{rest}"}
        await pages(scope, receive, send)

    return with_request_check(behind_secret, check=require_local_caller)


class ConsoleServer:
    """A server on 127.0.0.1, whose port accepts connections at once. `run` returns after Ctrl-C or
    SIGTERM."""

    def __init__(self, registry: str, *, port: int) -> None:
        """Bind the port (0: any free one); raise ValueError if it is not available."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._socket.bind((HOST, port))
            # until then, another user could bind the port too, and receive the secret
            self._socket.listen()
        except (OSError, OverflowError) as error:
            self._socket.close()
            raise ValueError(
                f"--port {port} is not available: {error}; give another port"
            ) from None
        secret = secrets.token_urlsafe(SECRET_BYTES)
        self.url = f"http://{HOST}:{self._socket.getsockname()[1]}/{secret}/console"
        config = uvicorn.Config(
            console_app(registry, secret=secret), log_level="warning", server_header=False
        )
        self._server = uvicorn.Server(config)

    def run(self) -> None:
        with closing(self._socket), suppress(KeyboardInterrupt):
            self._server.run(sockets=[self._socket])
