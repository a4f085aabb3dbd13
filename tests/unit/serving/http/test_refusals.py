"""Counts of refused requests by reason and client."""

import asyncio
import json
from collections.abc import Mapping

import pytest
from starlette.testclient import TestClient

from serving.http.asgi import ASGIApp, Events, Route, caller, http_app
from serving.http.refusals import MAX_CLIENTS, OTHERS, Refusal, RefusalCounts, with_refusal_counts
from serving.http.schemas import RequestError


def test_refusals_are_counted_by_reason_and_client() -> None:
    counts = RefusalCounts()
    invalid = Refusal(401, "invalid_api_key", "address 10.0.0.1")
    for refusal in (invalid, invalid, Refusal(403, "missing_scope", "key app")):
        counts.add(refusal)
    assert counts.take() == {invalid: 2, Refusal(403, "missing_scope", "key app"): 1}
    assert counts.take() == {}


def test_many_clients_cannot_make_the_counts_grow_or_hide_those_of_another_reason() -> None:
    counts = RefusalCounts()
    for number in range(10_000):
        counts.add(Refusal(401, "invalid_api_key", f"address {number}"))
    counts.add(Refusal(429, "rate_limited", "key app"))
    taken = counts.take()
    assert len(taken) == MAX_CLIENTS + 2
    assert taken[Refusal(401, "invalid_api_key", OTHERS)] == 10_000 - MAX_CLIENTS
    assert taken[Refusal(429, "rate_limited", "key app")] == 1


def _app(counts: RefusalCounts) -> ASGIApp:
    def authenticate(headers: Mapping[str, str], _route: Route) -> None:
        authorization = headers.get("authorization", "")
        if not authorization:
            raise RequestError(401, "missing_api_key", "no key")
        caller.set(authorization)

    async def answer(body: bytes, _request_id: str) -> tuple[int, bytes | Events]:
        if body:
            raise RequestError(int(body), f"type_{body.decode()}", "refused")
        return 200, b"{}"

    route = Route("POST", answer, watched=True)
    app = http_app({"/answer": route}, max_body_bytes=1024, authenticate=authenticate)
    return with_refusal_counts(app, add=counts.add)


@pytest.mark.parametrize(
    ("authorization", "body", "refusal"),
    [
        ("", "", Refusal(401, "missing_api_key", "address testclient")),
        ("app", "403", Refusal(403, "type_403", "key app")),
        ("app", "429", Refusal(429, "type_429", "key app")),
        ("app", "", None),
        ("app", "404", None),
        ("app", "500", None),
    ],
)
def test_a_response_that_refuses_is_counted_with_its_type_and_key(
    authorization: str, body: str, refusal: Refusal | None
) -> None:
    counts = RefusalCounts()
    client = TestClient(_app(counts))
    for _ in range(2):
        client.post("/answer", content=body, headers={"authorization": authorization} if authorization else {})
    assert counts.take() == ({} if refusal is None else {refusal: 2})


def test_the_caller_of_a_former_request_is_not_blamed() -> None:
    counts = RefusalCounts()
    app = _app(counts)

    async def scenario() -> None:
        caller.set("former")
        scope = {"type": "http", "method": "POST", "path": "/answer", "headers": [], "client": ("10.0.0.1", 1)}

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b""}

        sent: list[dict[str, object]] = []

        async def send(message: dict[str, object]) -> None:
            sent.append(message)

        await app(scope, receive, send)  # type: ignore[arg-type]
        assert json.loads(bytes(sent[1]["body"]))["error"]["type"] == "missing_api_key"  # type: ignore[call-overload]

    asyncio.run(scenario())
    assert [refusal.client for refusal in counts.take()] == ["address 10.0.0.1"]
