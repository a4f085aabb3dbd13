"""The applications of replicas before a version is loaded, and requests to them without a
server."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.types import Message

from serving.http.asgi import ASGIApp
from serving.limits import FairSlots
from serving.replica.base import Replica
from serving.replica.chat import Chat
from serving.replica.config import ReplicaConfig, VersionRef
from serving.replica.served_versions import ServedVersions
from serving.replica.shadow import ShadowRunner
from tailorbird.config.serving import ServingConfig


def deployment(service: type, config: ServingConfig, engine: Any = None) -> Any:
    """Return the deployment of a class, for example `Classifier`, with a champion or without a
    version."""
    versions: ServedVersions[Any] = ServedVersions(lambda _uri, _digest: engine)
    if engine is not None:
        versions.engines = {"champion": engine}
        versions.config = ReplicaConfig(champion=VersionRef(uri="s3://version", digest="d"))
    made: Any = object.__new__(service)
    made._config = config
    task = "chat" if service is Chat else "classification"
    made._replica = Replica(versions, task=task, task_uri="s3://models/task", config=config)
    made._prompts = FairSlots(1)  # unused by classifiers
    made._shadows = ShadowRunner(made._is_quiet)
    return made


def application(service: type, config: ServingConfig, engine: Any = None) -> ASGIApp:
    """Return the application of a `deployment`."""
    app: ASGIApp = deployment(service, config, engine).__serve_build_asgi_app__()
    return app


def chunks(*parts: bytes) -> list[Message]:
    """Return the messages of a body that arrives in parts."""
    return [
        {"type": "http.request", "body": part, "more_body": number < len(parts)}
        for number, part in enumerate(parts, 1)
    ]


async def exchange(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    body: Sequence[Message] = (),
    headers: Mapping[bytes, bytes] | Sequence[tuple[bytes, bytes]] = (),
    disconnect: asyncio.Event | None = None,
    **scope: Any,
) -> list[Message]:
    """Return the messages of a response to a client, who disconnects when `disconnect` is set."""
    messages = list(body)
    sent: list[Message] = []

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await (disconnect or asyncio.Event()).wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    fields = {"type": "http", "method": method, "path": path, "query_string": b""}
    lines = list(headers.items() if isinstance(headers, Mapping) else headers)
    await app(fields | {"headers": lines} | scope, receive, send)
    return sent


def request(
    app: ASGIApp, method: str, path: str, *, body: bytes = b"{}"
) -> tuple[int, dict[bytes, bytes], str]:
    """Return the status, the headers and the body of the response, whose events are joined."""
    headers = {
        b"host": b"127.0.0.1:8000",
        b"content-type": b"application/json",
        b"x-request-id": b"r",
    }
    sent = asyncio.run(exchange(app, method, path, body=chunks(body), headers=headers))
    text = b"".join(message.get("body", b"") for message in sent[1:]).decode()
    return sent[0]["status"], dict(sent[0]["headers"]), text
