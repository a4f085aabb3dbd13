"""Readiness, assignment to experiment arms, and refused subjects of all replicas."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from serving.http.schemas import RequestError
from serving.replica.base import Replica, RequestContext, require_loggable_subject
from serving.replica.config import config_id
from serving.request_log.log import RequestLog
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.replica.loads import Loads, config, ref, settle


def new_replica(config: ServingConfig | None = None) -> Replica[Any]:
    return Replica(Loads().versions(), task_uri="s3://models/task", config=config or ServingConfig())


async def ready(replica: Replica[Any]) -> tuple[int, Any]:
    status, content = await replica._routes()["/readyz"].answer(b"", "r")
    assert isinstance(content, bytes)
    return status, json.loads(content)


async def change(replica: Replica[Any], user_config: dict[str, Any]) -> None:
    await replica.reconfigure(user_config)
    await settle(replica.versions)


def test_readyz_reports_the_loaded_version_and_configuration() -> None:
    async def scenario() -> None:
        replica = new_replica()
        assert await ready(replica) == (503, {"status": "loading"})
        with pytest.raises(RequestError, match="still loading"):
            replica.begin("classify", "r")
        await replica.reconfigure(config("one"))
        status, readiness = await ready(replica)
        assert (status, readiness.pop("config")) == (200, config_id(config("one")))
        assert readiness == {"status": "ready", "version": "one", "digest": "d-one"}

    asyncio.run(scenario())


def test_readyz_reports_the_challenger_and_the_refused_and_absent_versions() -> None:
    async def scenario() -> None:
        replica = new_replica()
        await replica.reconfigure(config("one", challenger=ref("new", canary=1.0), others={"lora-1": ref("bad")}))
        _, readiness = await ready(replica)
        assert (readiness["challenger"], readiness["absent"]) == ("d-new", {"lora-1": "the version is damaged"})
        assert "refused" not in readiness
        await change(replica, config("bad"))
        _, readiness = await ready(replica)
        assert (readiness["version"], readiness["refused"], readiness["reason"]) == (
            "one",
            "d-bad",
            "the version is damaged",
        )
        await change(replica, config("one"))
        assert {"refused", "absent", "challenger"}.isdisjoint((await ready(replica))[1])

    asyncio.run(scenario())


def test_readyz_hides_reasons_if_the_service_has_api_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"app {'0' * 64}\n")

    async def scenario() -> None:
        replica = new_replica(ServingConfig(api_keys=keys.as_uri()))
        await replica.reconfigure(config("one", others={"lora-1": ref("bad")}))
        await change(replica, config("bad"))
        _, readiness = await ready(replica)
        assert readiness["reason"] == "see the replica's log"
        assert readiness["absent"] == {"lora-1": "see the replica's log"}

    asyncio.run(scenario())


def test_a_request_is_assigned_to_an_arm_by_its_subject_and_logged_with_it() -> None:
    async def scenario() -> None:
        replica = new_replica()
        await replica.reconfigure(config("one", challenger=ref("new", canary=1.0)))
        engine, context = replica.assign(replica.begin("classify", "r"), model="champion", subject="s")
        assert (context.unit, context.arm) == ("s", "canary")
        entry = context.log_entry(engine.version)(row=1, label="a")
        assert (entry.version, entry.digest, entry.request_id, entry.row) == ("new", "d-new", "r", 1)
        assert (entry.subject, entry.route, entry.arm, entry.label) == ("s", "classify", "canary", "a")

    asyncio.run(scenario())
    assert RequestContext("chat", "r", 0.0, None).unit == "r"


def test_a_subject_is_refused_if_the_log_does_not_store_subjects() -> None:
    require_loggable_subject(None, log=None)
    require_loggable_subject("s", log=RequestLog("file:///nowhere", subject_key=b"k" * 32, texts=False))
    for log in (None, RequestLog("file:///nowhere", subject_key=None, texts=False)):
        with pytest.raises(RequestError, match="subject: not accepted") as caught:
            require_loggable_subject("s", log=log)
        assert caught.value.status == 422
