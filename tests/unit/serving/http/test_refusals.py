"""Counts of refused requests by reason and client."""

import asyncio
from collections.abc import Mapping

from starlette.testclient import TestClient

from serving.http.asgi import ASGIApp, Events, Route, caller, http_app
from serving.http.metrics import Meter, with_request_metrics
from serving.http.refusals import MAX_CLIENTS, OTHER_CLIENTS, Refusal, Refusals
from serving.http.schemas import RequestError
from tests.unit.serving.http.application import exchange


def test_many_clients_cannot_make_the_counts_grow_or_hide_those_of_another_reason() -> None:
    refusals = Refusals("icd10")
    for number in range(10_000):
        refusals.add(Refusal(401, "invalid_api_key", f"address {number}"))
    refusals.add(Refusal(429, "rate_limited", "key app"))
    taken = refusals.take()
    assert len(taken) == MAX_CLIENTS + 2
    assert taken[Refusal(401, "invalid_api_key", OTHER_CLIENTS)] == 10_000 - MAX_CLIENTS
    assert taken[Refusal(429, "rate_limited", "key app")] == 1


def _app(refusals: Refusals) -> ASGIApp:
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
    return with_request_metrics(app, meter=Meter(), refusals=refusals)


def test_a_response_that_refuses_is_counted_with_its_type_and_key() -> None:
    refusals = Refusals("icd10")
    client = TestClient(_app(refusals))
    for status in ("403", "403", "429", "404", "500"):
        client.post("/answer", content=status, headers={"authorization": "app"})
    refusal = Refusal(403, "type_403", "key app")
    assert refusals.take() == {refusal: 2, Refusal(429, "type_429", "key app"): 1}


def test_the_caller_of_a_previous_request_is_not_blamed() -> None:
    refusals = Refusals("icd10")

    async def scenario() -> None:
        caller.set("previous")
        await exchange(_app(refusals), "POST", "/answer", client=("10.0.0.1", 1))

    asyncio.run(scenario())
    assert refusals.take() == {Refusal(401, "missing_api_key", "address 10.0.0.1"): 1}
