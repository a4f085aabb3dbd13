"""Readiness, assignment to experiment arms, and refused subjects of all replicas."""

import asyncio
import gc
import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.types import Message

from serving.http.api_keys import new_key
from serving.http.asgi import Route, x_request_id
from serving.http.schemas import RequestError
from serving.replica.base import Replica, RequestContext, require_loggable_subject
from serving.replica.config import config_id
from serving.replica.served_versions import RefusedVersion
from serving.request_log.log import RequestLog
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.replica.loads import Loads, config, ref, settle

UNWRITABLE = "file:///dev/null/registry/task"  # in a file, there are no folders


def new_replica(config: ServingConfig | None = None) -> Replica[Any]:
    return Replica(
        Loads().versions(),
        task="classification",
        task_uri=UNWRITABLE,
        config=config or ServingConfig(),
    )


async def ready(replica: Replica[Any]) -> tuple[int, Any]:
    status, content = await replica._routes()["/readyz"].answer(b"", "r")
    assert isinstance(content, bytes)
    return status, json.loads(content)


async def change(replica: Replica[Any], user_config: dict[str, Any]) -> None:
    await replica.reconfigure(user_config)
    await settle(replica.versions)


@pytest.mark.anyio
async def test_readyz_reports_the_configuration_the_challenger_and_refused_and_absent_versions() -> (
    None
):
    gc.unfreeze()
    replica = new_replica()
    assert await ready(replica) == (503, {"status": "loading"})
    with pytest.raises(RequestError):
        replica.begin("classify", "r")
    await replica.reconfigure(config("one"))
    assert gc.get_freeze_count() > 100_000  # collections skip the objects of torch and Ray
    gc.unfreeze()
    loaded = {"status": "ready", "version": "one", "digest": "d-one"}
    assert await ready(replica) == (200, loaded | {"config": config_id(config("one"))})
    others = {"lora-1": ref("bad")}
    await change(replica, config("one", challenger=ref("new", canary=1.0), others=others))
    _, readiness = await ready(replica)
    assert readiness["challenger"] == "d-new"
    assert readiness["absent"] == {"lora-1": "the version is damaged"}
    assert "refused" not in readiness
    await change(replica, config("bad"))
    _, readiness = await ready(replica)
    refusal = {"version": "one", "refused": "d-bad", "reason": "the version is damaged"}
    assert refusal.items() <= readiness.items()
    await change(replica, config("one"))
    assert {"refused", "absent", "challenger"}.isdisjoint((await ready(replica))[1])


def test_readyz_shows_reasons_to_a_key_with_the_scope_admin(tmp_path: Path) -> None:
    made = {name: new_key(name, options=[f"scopes={name}"]) for name in ("admin", "answer")}
    (tmp_path / "keys").write_text("\n".join(stored.to_line() for _, stored in made.values()))

    replica = new_replica(ServingConfig(api_keys=(tmp_path / "keys").as_uri()))
    asyncio.run(replica.reconfigure(config("one", others={"lora-1": ref("bad")})))
    replica.versions.refused = RefusedVersion("d-bad", "the version is damaged")
    client = TestClient(replica.asgi_app({}, page="classify"), base_url="http://127.0.0.1")

    def reasons(key: str) -> set[str]:
        answer = client.get("/readyz", headers={"authorization": f"Bearer {key}"}).json()
        return {answer["reason"], answer["absent"]["lora-1"]}

    assert reasons(made["admin"][0]) == {"the version is damaged"}
    for key in (made["answer"][0], "invalid"):
        assert reasons(key) == {"see the replica's log"}


@pytest.mark.parametrize("separate_lines", [False, True])
def test_a_client_that_sends_bodies_slowly_leaves_room_for_others(separate_lines: bool) -> None:
    replica = new_replica(ServingConfig(max_batch_size=1, max_queued_requests=3, guarded=True))
    go = asyncio.Event()

    async def answer(body: bytes, _request_id: str) -> tuple[int, bytes]:
        return 200, body

    app = replica.asgi_app({"/v1/echo": Route("POST", answer)}, page="classify")

    async def send_slowly(address: str) -> tuple[int, dict[bytes, bytes]]:
        async def receive() -> Message:
            await go.wait()
            return {"type": "http.request", "body": b"{}"}

        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        # A client can choose all addresses but the last one, which the gateway adds.
        chosen, added = f"10.9.9.{len(tasks)}", address
        values = [chosen, added] if separate_lines else [f"{chosen}, {added}"]
        headers = [(b"x-forwarded-for", value.encode()) for value in values]
        scope = {"type": "http", "method": "POST", "path": "/v1/echo", "headers": headers}
        await app(scope, receive, send)
        return sent[0]["status"], dict(sent[0]["headers"])

    tasks: list[asyncio.Task[tuple[int, dict[bytes, bytes]]]] = []

    async def scenario() -> list[tuple[int, dict[bytes, bytes]]]:
        for address in ("10.0.0.1", "10.0.0.1", "10.0.0.1", "10.0.0.2"):
            tasks.append(asyncio.create_task(send_slowly(address)))
            await asyncio.sleep(0)
        go.set()
        return await asyncio.gather(*tasks)

    responses = asyncio.run(scenario())
    assert [status for status, _ in responses] == [200, 200, 429, 200]
    assert responses[2][1][b"retry-after"] == b"2"
    assert not replica._admission.budgets["requests"].held


@pytest.mark.anyio
async def test_a_request_is_assigned_to_an_arm_by_its_subject_and_logged_with_it() -> None:
    replica = new_replica()
    await replica.reconfigure(config("one", challenger=ref("new", canary=1.0)))
    x_request_id.set("mine")
    engine, context = replica.assign(replica.begin("classify", "r"), model="champion", subject="s")
    assert (context.unit, context.arm) == ("subject s", "canary")
    entry = context.log_entry(engine.version)(row=1, label="a")
    expected = {
        "version": "new",
        "digest": "d-new",
        "request_id": "r",
        "x_request_id": "mine",
        "row": 1,
        "subject": "s",
        "route": "classify",
        "arm": "canary",
        "label": "a",
    }
    assert {name: getattr(entry, name) for name in expected} == expected
    named = RequestContext("chat", "r", 0.0, None, subject="r")
    assert named.unit != named._replace(subject=None).unit == "request r"


def test_a_subject_is_refused_if_the_log_does_not_store_subjects(tmp_path: Path) -> None:
    require_loggable_subject(None, log=None)
    keyed, unkeyed = (
        RequestLog("file:///nowhere", subject_key=key, texts=False, wal_folder=tmp_path)
        for key in (b"k" * 32, None)
    )
    require_loggable_subject("s", log=keyed)
    for log in (None, unkeyed):
        with pytest.raises(RequestError) as caught:
            require_loggable_subject("s", log=log)
        assert caught.value.status == 422


@pytest.mark.anyio
async def test_a_background_task_that_fails_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise ValueError("it gave up")

    replica = new_replica()
    monkeypatch.setattr(replica._refusals, "keep_logging", fail)
    await replica.reconfigure(config("one"))
    await asyncio.wait(replica._background, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0)
    (record,) = [record for record in caplog.records if record.exc_info]
    assert "background task" in record.message
    assert "it gave up" in caplog.text


def test_behind_a_gateway_a_page_of_another_site_can_read_but_not_post() -> None:
    replica = new_replica(ServingConfig(guarded=True))
    client = TestClient(replica.asgi_app({}, page="classify"), base_url="https://api.example")

    def statuses(**headers: str) -> tuple[int, int]:
        posted = client.post(
            "/v1/feedback", content="{}", headers={"content-type": "text/plain", **headers}
        )
        return client.get("/healthz", headers=headers).status_code, posted.status_code

    evil = "https://evil.example"
    assert statuses() == statuses(origin="https://api.example") == (200, 422)
    assert (
        statuses(origin=evil, **{"sec-fetch-site": "cross-site"})
        == statuses(origin=evil)
        == (200, 403)
    )
    assert [refusal.type for refusal in replica._refusals.take()] == ["foreign_page"]
