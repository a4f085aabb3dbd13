"""Readiness, admission and requests of other sites in all replicas."""

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message

from serving.http.schemas import RequestError
from serving.replica.base import Replica
from serving.replica.config import config_id
from tests.unit.serving.http.application import exchange
from tests.unit.serving.replica.loads import (
    client_of,
    config,
    new_replica,
    ref,
    settle,
    stored_keys,
)

REASON = "the version is damaged"


async def ready(replica: Replica[Any]) -> tuple[int, Any]:
    status, content = await replica._routes()["/readyz"].answer(b"", "r")
    assert isinstance(content, bytes)
    return status, json.loads(content)


@pytest.mark.anyio
async def test_readyz_reports_the_configuration_the_challenger_and_refused_and_absent_versions() -> (
    None
):
    async def after(user_config: dict[str, Any]) -> Any:
        await replica.reconfigure(user_config)
        await settle(replica.versions)
        status, readiness = await ready(replica)
        assert status == 200
        return readiness

    gc.unfreeze()
    replica = new_replica()
    assert await ready(replica) == (503, {"status": "loading"})
    with pytest.raises(RequestError):
        replica.begin("classify", "r")
    loaded = {"status": "ready", "version": "one", "digest": "d-one"}
    assert await after(config("one")) == loaded | {"config": config_id(config("one"))}
    assert gc.get_freeze_count() > 100_000  # collections skip the objects of torch and Ray
    gc.unfreeze()
    others = {"lora-1": ref("bad")}
    changed = await after(config("one", challenger=ref("new", shadow=1.0), selectable=others))
    assert (changed["challenger"], changed["absent"]) == ("d-new", {"lora-1": REASON})
    assert "refused" not in changed
    refused = await after(config("bad"))
    assert {"version": "one", "refused": "d-bad", "reason": REASON}.items() <= refused.items()
    assert {"refused", "absent", "challenger"}.isdisjoint(await after(config("one")))


def test_readyz_shows_reasons_to_a_key_with_the_scope_admin(tmp_path: Path) -> None:
    uri, keys = stored_keys(tmp_path, admin="scopes=admin", answer="scopes=answer")
    replica = new_replica(api_keys=uri)
    asyncio.run(replica.reconfigure(config("one", selectable={"lora-1": ref("bad")})))
    client = client_of(replica)

    def reason(key: str) -> str:
        answer = client.get("/readyz", headers={"authorization": f"Bearer {key}"}).json()
        return str(answer["absent"]["lora-1"])

    assert reason(keys["admin"]) == REASON
    for key in (keys["answer"], "invalid"):
        assert reason(key) == "see the replica's log"


@pytest.mark.parametrize("separate_lines", [False, True])
def test_a_client_that_sends_bodies_slowly_leaves_room_for_others(separate_lines: bool) -> None:
    replica = new_replica(max_batch_size=1, max_queued_requests=3, guarded=True)
    app = replica.asgi_app({}, page="classify")
    gone = asyncio.Event()

    async def send_slowly(address: str, chosen: str) -> Message:
        """Return the start of the response to a client that leaves before the end of the body."""
        # A client can choose all addresses but the last one, which the gateway adds.
        values = [chosen, address] if separate_lines else [f"{chosen}, {address}"]
        headers = [(b"x-forwarded-for", value.encode()) for value in values]
        sent = await exchange(app, "POST", "/v1/feedback", headers=headers, disconnect=gone)
        return sent[0]

    async def scenario() -> list[Message]:
        addresses = ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2")
        works = [send_slowly(each, f"10.9.9.{number}") for number, each in enumerate(addresses)]
        asyncio.get_running_loop().call_later(0.1, gone.set)
        return await asyncio.gather(*works)

    responses = asyncio.run(scenario())
    assert [response["status"] for response in responses] == [400, 400, 429, 400]
    assert dict(responses[2]["headers"])[b"retry-after"] == b"2"
    assert not replica._admission.budgets["requests"].held


def test_behind_a_gateway_a_page_of_another_site_can_read_but_not_post() -> None:
    replica = new_replica(guarded=True)
    client = client_of(replica, "https://api.example")

    def statuses(**headers: str) -> tuple[int, int]:
        sent = {"content-type": "text/plain", **headers}
        posted = client.post("/v1/feedback", content="{}", headers=sent)
        return client.get("/healthz", headers=headers).status_code, posted.status_code

    assert statuses() == statuses(origin="https://api.example") == (200, 422)
    assert statuses(origin="https://evil.example") == (200, 403)
    assert [refusal.type for refusal in replica._refusals.take()] == ["foreign_page"]


@pytest.mark.anyio
async def test_each_configuration_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    replica = new_replica()
    for name in ("one", "new"):
        await replica.reconfigure(config(name))
        await settle(replica.versions)
    events = [json.loads(record.getMessage()) for record in caplog.records]
    champions = [event["versions"]["champion"]["uri"] for event in events]
    assert [event["event"] for event in events] == ["configuration"] * 2
    assert champions == [ref(name)["uri"] for name in ("one", "new")]
    assert "verdict" not in events[0]["versions"]
