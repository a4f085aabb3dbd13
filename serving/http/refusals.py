"""Counts of refused requests for the security log, by reason and client, in bounded memory."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from serving.http.asgi import ASGIApp, caller
from serving.http.schemas import ErrorBody

STATUSES = (401, 403, 429)
MAX_CLIENTS = 8
"""Maximum number of clients with counts of their own per reason, between two writes of the log."""
OTHERS = "other clients"


class Refusal(NamedTuple):
    """The reason of a refusal, which is the `type` of the error, and the client."""

    status: int
    type: str
    client: str
    """`key NAME`, or `address ADDRESS` if the request has no valid key."""


class RefusalCounts:
    """Refusals since the last `take`. Reasons are few; beyond `MAX_CLIENTS` clients, a reason is counted for others."""

    def __init__(self) -> None:
        self._counts: Counter[Refusal] = Counter()

    def add(self, refusal: Refusal) -> None:
        """Count a refusal."""
        reason = (refusal.status, refusal.type)
        if refusal not in self._counts:
            num_clients = sum((other.status, other.type) == reason for other in self._counts)
            if num_clients >= MAX_CLIENTS:
                refusal = refusal._replace(client=OTHERS)
        self._counts[refusal] += 1

    def take(self) -> dict[Refusal, int]:
        """Return the counts, and start again from 0."""
        counts, self._counts = self._counts, Counter()
        return dict(counts)


def with_refusal_counts(app: ASGIApp, *, add: Callable[[Refusal], None]) -> ASGIApp:
    """Return the application, which calls `add` for each response with a status in `STATUSES`."""

    async def counted(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        caller.set(None)
        status, body = 0, b""

        async def observed_send(message: Message) -> None:
            nonlocal status, body
            if message["type"] == "http.response.start":
                status = message["status"]
            elif status in STATUSES:
                body += message.get("body", b"")
            await send(message)

        try:
            await app(scope, receive, observed_send)
        finally:
            if status in STATUSES:
                add(Refusal(status, _type_of(body), _client(scope)))

    return counted


def _type_of(body: bytes) -> str:
    try:
        return ErrorBody.model_validate_json(body).error.type
    except ValidationError:
        return "unknown"


def _client(scope: Scope) -> str:
    name, address = caller.get(), scope.get("client")
    return f"key {name}" if name else f"address {address[0] if address else 'unknown'}"
