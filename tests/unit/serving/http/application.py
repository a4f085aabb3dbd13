"""The applications of replicas before a version is loaded, and requests to them without a
server."""

import asyncio
from typing import Any

from starlette.types import Message

from serving.http.asgi import ASGIApp
from serving.replica.base import Replica
from serving.replica.chat import Chat
from serving.replica.served_versions import ServedVersions
from tailorbird.config.serving import ServingConfig


def application(service: type, config: ServingConfig) -> ASGIApp:
    """Return the application of a deployment's class, for example `Classifier`."""

    def load(_uri: str, _digest: str) -> Any:
        raise AssertionError

    deployment: Any = object.__new__(service)
    deployment._config = config
    versions, task = (
        ServedVersions(load, read_secret=bytes),
        "chat" if service is Chat else "classification",
    )
    deployment._replica = Replica(versions, task=task, task_uri="s3://models/task", config=config)
    app: ASGIApp = deployment.__serve_build_asgi_app__()
    return app


def request(
    app: ASGIApp, method: str, path: str, *, body: bytes = b"{}"
) -> tuple[int, dict[bytes, bytes], str]:
    """Return the status, the headers and the body of the response, whose events are joined."""
    sent: list[Message] = []
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if not messages:
            await asyncio.Event().wait()  # the client does not disconnect
        return messages.pop()

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [
        (b"host", b"127.0.0.1:8000"),
        (b"content-type", b"application/json"),
        (b"x-request-id", b"r"),
    ]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "headers": headers,
        "query_string": b"",
    }
    asyncio.run(app(scope, receive, send))
    text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    return sent[0]["status"], dict(sent[0]["headers"]), text
