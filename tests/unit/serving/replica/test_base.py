"""One version serves at a time: it is changed while it answers, and the one asked for last stays."""

import asyncio
import json
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from serving.http.schemas import RequestError, config_id
from serving.replica import base as replicas
from serving.replica.base import Replica, refuse_unkept_subject
from serving.request_log.log import RequestLog
from tailorbird.config.serving import ServingConfig


class Loads:
    """A loader that waits until it is let go, and cannot load what is called `bad`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.unloaded: list[str] = []
        self.loaded: list[str] = []

    def load(self, uri: str, digest: str) -> Any:
        assert self.go.wait(10)
        if uri == "bad":
            raise ValueError("it is not whole")
        self.loaded.append(uri)
        return SimpleNamespace(version=SimpleNamespace(name="task", version=uri, digest=digest))

    def replica(self) -> Replica[Any]:
        return Replica(
            self.load, config=ServingConfig(), unload=lambda former: self.unloaded.append(former.version.version)
        )


def asked(uri: str) -> dict[str, Any]:
    return {"version_uri": uri, "digest": f"d-{uri}"}


async def ready(replica: Replica[Any]) -> tuple[int, Any]:
    status, content = await replica._routes()["/readyz"].answer(b"", "r")
    assert isinstance(content, bytes)
    return status, json.loads(content)


async def settled(replica: Replica[Any]) -> None:
    if replica._changes is not None:
        await replica._changes


def test_the_first_version_is_waited_for_and_its_fault_is_the_replicas() -> None:
    async def begin() -> None:
        loads = Loads()
        replica = loads.replica()
        assert (await ready(replica))[0] == 503
        with pytest.raises(RequestError, match="still being loaded"):
            _ = replica.engine
        loads.go.set()
        with pytest.raises(ValueError, match="not whole"):
            await replica.reconfigure(asked("bad"))
        await replica.reconfigure(asked("one"))
        status, told = await ready(replica)
        assert (status, told.pop("config")) == (200, config_id(asked("one")))
        assert told == {"status": "ready", "version": "one", "digest": "d-one"}

    asyncio.run(begin())


def test_the_former_serves_until_a_later_one_is_loaded_and_serve_does_not_wait_for_that() -> None:
    async def change() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        await replica.reconfigure(asked("one"))
        loads.go.clear()
        for uri in ("two", "three"):
            await replica.reconfigure(asked(uri))
        assert (replica.engine.version.version, loads.unloaded) == ("one", [])
        loads.go.set()
        await settled(replica)
        assert (replica.engine.version.version, loads.unloaded) == ("three", ["one", "two"])

    asyncio.run(change())


def test_a_later_one_that_cannot_be_loaded_is_named_until_another_is_asked_for() -> None:
    async def change() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        await replica.reconfigure(asked("one"))
        await replica.reconfigure(asked("bad"))
        await settled(replica)
        _, told = await ready(replica)
        assert (told["version"], told["refused"], told["reason"]) == ("one", "d-bad", "it is not whole")
        await replica.reconfigure(asked("one"))
        await settled(replica)
        assert "refused" not in (await ready(replica))[1]
        assert (loads.loaded, loads.unloaded) == (["one"], [])

    asyncio.run(change())


def test_a_model_goes_by_its_name_its_version_both_or_champion() -> None:
    async def ask() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        await replica.reconfigure(asked("full-1") | {"beside": {"pretrained": asked("probe-1")}})
        for given in ("champion", "task", "full-1", "task@full-1"):
            assert replica.engine_of(given).version.version == "full-1"
        for given in ("pretrained", "probe-1", "task@probe-1"):
            assert replica.engine_of(given).version.version == "probe-1"
        with pytest.raises(RequestError) as caught:
            replica.engine_of("gpt-4")
        assert (caught.value.status, caught.value.code) == (404, "model_not_found")

    asyncio.run(ask())


def test_what_serves_already_is_not_loaded_again_and_what_no_name_is_left_of_retires() -> None:
    async def change() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        await replica.reconfigure(asked("one") | {"beside": {"pretrained": asked("probe")}})
        await replica.reconfigure(asked("two") | {"beside": {"pretrained": asked("probe")}})
        await settled(replica)
        assert (loads.loaded, loads.unloaded) == (["one", "probe", "two"], ["one"])
        await replica.reconfigure(asked("probe") | {"beside": {"pretrained": asked("probe")}})
        await settled(replica)
        assert (loads.loaded, loads.unloaded) == (["one", "probe", "two"], ["one", "two"])
        assert replica.engine is replica.engine_of("pretrained")
        await replica.reconfigure(asked("one") | {"beside": {"pretrained": asked("bad")}})
        await settled(replica)  # the champion does not need the other
        assert "refused" not in (await ready(replica))[1]
        assert replica.engine.version.version == "one"
        with pytest.raises(RequestError, match="no model 'pretrained' here"):
            replica.engine_of("pretrained")

    asyncio.run(change())


def test_a_trial_takes_its_share_of_those_who_ask_for_the_champion_and_of_nobody_else() -> None:
    async def change() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        await replica.reconfigure(asked("one") | {"trial": asked("new") | {"canary": 1.0}})
        for given in ("champion", "task"):
            engine, arm = replica.drawn(given, unit="u")
            assert (engine.version.version, arm) == ("new", "canary")
        for given, version in (("one", "one"), ("task@one", "one"), ("trial", "new"), ("new", "new")):
            engine, arm = replica.drawn(given, unit="u")
            assert (engine.version.version, arm) == (version, None)
        assert replica.shadow(unit="u") is None
        assert (await ready(replica))[1]["trial"] == "d-new"
        await replica.reconfigure(asked("one") | {"trial": asked("new") | {"shadow": 1.0}})
        await settled(replica)
        engine, arm = replica.drawn("champion", unit="u")
        shadow = replica.shadow(unit="u")
        assert (engine.version.version, arm, shadow and shadow.version.version) == ("one", "champion", "new")
        await replica.reconfigure(asked("one"))
        await settled(replica)
        assert (replica.drawn("champion", unit="u")[1], replica.shadow(unit="u")) == ("champion", None)
        assert (loads.loaded, loads.unloaded) == (["one", "new"], ["new"])

    asyncio.run(change())


@pytest.mark.parametrize("first", [True, False])
def test_a_trial_that_cannot_be_loaded_is_told_and_the_champion_serves(first: bool) -> None:
    async def change() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        if not first:
            await replica.reconfigure(asked("one"))
        await replica.reconfigure(asked("one") | {"trial": asked("bad") | {"canary": 1.0}})
        await settled(replica)
        engine, arm = replica.drawn("champion", unit="u")
        assert (engine.version.version, arm) == ("one", "champion")
        _, told = await ready(replica)
        assert (told["absent"], "trial" in told, "refused" in told) == ({"trial": "it is not whole"}, False, False)
        await replica.reconfigure(asked("one"))
        await settled(replica)
        assert "absent" not in (await ready(replica))[1]

    asyncio.run(change())


def test_what_is_absent_is_tried_again_until_it_is_there_and_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(replicas, "ABSENT_S", 0.01)
    monkeypatch.setattr(replicas, "MAX_ABSENT_S", 0.02)
    num_tried = 0

    async def change() -> None:
        loads = Loads()
        loads.go.set()

        def load(uri: str, digest: str) -> Any:
            nonlocal num_tried
            num_tried += uri == "probe"
            return loads.load("bad" if uri == "probe" and num_tried < 4 else uri, digest)

        replica: Replica[Any] = Replica(load, config=ServingConfig())
        await replica.reconfigure(asked("one") | {"beside": {"pretrained": asked("probe")}})
        await replica.reconfigure(asked("bad"))  # which is refused: what served before goes on
        await settled(replica)
        while "pretrained" not in replica.engines:
            await asyncio.sleep(0.01)
        assert replica.engine_of("pretrained").version.version == "probe"
        _, told = await ready(replica)
        assert (told["refused"], "absent" in told) == ("d-bad", False)
        await asyncio.sleep(0.1)
        assert (loads.loaded, num_tried) == (["one", "probe"], 4)

    asyncio.run(change())
    assert len([one for one in caplog.records if "probe cannot be loaded" in one.getMessage()]) == 1


def test_a_subject_is_refused_where_none_is_kept() -> None:
    refuse_unkept_subject(None, log=None)
    refuse_unkept_subject("s", log=RequestLog("file:///nowhere", subject_key=b"k" * 32, texts=False))
    for log in (None, RequestLog("file:///nowhere", subject_key=None, texts=False)):
        with pytest.raises(RequestError, match="subject: none is kept here") as caught:
            refuse_unkept_subject("s", log=log)
        assert caught.value.status == 422


def test_one_beside_the_champion_that_stopped_by_itself_is_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replicas, "ABSENT_S", 0.01)

    async def change() -> None:
        loads = Loads()
        loads.go.set()
        replica = loads.replica()
        await replica.reconfigure(asked("one") | {"beside": {"pretrained": asked("probe")}})
        first = replica.engine_of("pretrained")
        first.running = False
        while replica.engine_of("pretrained") is first:
            await asyncio.sleep(0.01)
        assert (loads.loaded, loads.unloaded) == (["one", "probe", "probe"], ["probe"])

    asyncio.run(change())
