"""Turns of large bodies: small bodies do not wait, and clients with large ones take turns."""

import asyncio
from contextlib import AbstractContextManager

import pytest
from starlette.requests import Request
from starlette.types import Message

from serving.http import asgi
from serving.http.asgi import SMALL_BODY_BYTES, ASGIApp, Route, http_app
from serving.limits import Admission
from tests.unit.serving.http.application import chunks, exchange

LARGE = b"a" * (SMALL_BODY_BYTES + 1)
SMALL = b"a" * SMALL_BODY_BYTES
pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


class Service:
    """An application that records the clients of its requests in the order of their answers."""

    def __init__(self) -> None:
        self.answered: list[str] = []
        admission = Admission(requests=100)

        def admit(request: Request) -> AbstractContextManager[None]:
            return admission.request(request.headers["client"])

        async def answer(body: bytes, _request_id: str) -> tuple[int, bytes]:
            self.answered.append(body[-4:].decode())
            return 200, b"{}"

        self.app: ASGIApp = http_app(
            {"/": Route("POST", answer)},
            max_body_bytes=1 << 20,
            authenticate=lambda _headers, _route: None,
            admit=admit,
        )

    def send(
        self, client: str, body: bytes, *, disconnect: asyncio.Event | None = None
    ) -> asyncio.Task[list[Message]]:
        """Send a body, the end of which is replaced by the name of the client, who stays until
        `disconnect` is set."""
        messages = chunks(body[:-4] + client.encode())
        headers = {b"client": client.encode()}
        return asyncio.create_task(
            exchange(self.app, "POST", "/", body=messages, headers=headers, disconnect=disconnect)
        )


async def test_only_large_bodies_wait_for_the_pause_after_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(asgi, "BYTES_PER_S", 1.0)  # the pause takes hours

    service = Service()
    await service.send("many", LARGE)
    waiting = [service.send(client, LARGE) for client in ("many", "some")]
    await asyncio.gather(*(service.send(client, SMALL) for client in ("many", "tiny")))
    assert service.answered == ["many", "many", "tiny"]
    for request in waiting:
        request.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_request_that_is_cancelled_or_disconnects_leaves_its_turn_to_the_next_one(
    monkeypatch: pytest.MonkeyPatch, is_cancelled: bool
) -> None:
    monkeypatch.setattr(asgi, "BYTES_PER_S", len(LARGE) / 0.2)

    service = Service()
    disconnect = asyncio.Event()
    await service.send("many", LARGE)
    gone = service.send("gone", LARGE, disconnect=disconnect)
    waiting = service.send("some", LARGE)
    await asyncio.sleep(0)
    if is_cancelled:
        gone.cancel()
    else:
        disconnect.set()
    await asyncio.gather(gone, waiting, return_exceptions=True)
    assert service.answered == ["many", "some"]
