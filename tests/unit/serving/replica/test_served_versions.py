"""Versions are swapped while they answer, and the last configuration wins."""

import asyncio
import threading
from typing import Any

import pytest

from serving.http.schemas import RequestError
from serving.replica import served_versions
from serving.replica.config import config_id
from serving.replica.served_versions import ServedVersions
from tests.unit.serving.replica.loads import Loads, change, config, ref, settle

pytestmark = pytest.mark.anyio


def champion(versions: ServedVersions[Any]) -> str:
    return str(versions.champion.version.version)


async def test_the_first_version_is_loaded_before_returning_and_its_error_is_raised() -> None:
    versions = Loads().versions()
    with pytest.raises(RequestError):
        _ = versions.champion
    with pytest.raises(ValueError, match="damaged"):
        await versions.reconfigure(config("bad"))
    await versions.reconfigure(config("one"))
    assert (champion(versions), versions.config_id) == ("one", config_id(config("one")))


async def test_the_former_version_serves_until_a_later_one_is_loaded_in_the_background() -> None:
    loads = Loads()
    versions = loads.versions()
    await versions.reconfigure(config("one"))
    loads.go.clear()
    for uri in ("two", "three"):
        await versions.reconfigure(config(uri))
    assert (champion(versions), loads.unloaded) == ("one", [])
    loads.go.set()
    await settle(versions)
    assert (champion(versions), loads.unloaded) == ("three", ["one", "two"])


async def test_a_later_version_that_cannot_be_loaded_is_refused_until_the_next_change() -> None:
    loads = Loads()
    versions = loads.versions()
    await versions.reconfigure(config("one"))
    await change(versions, config("bad"))
    assert (champion(versions), versions.refused) == (
        "one",
        ("d-bad", "the version is damaged"),
    )
    assert versions.config_id == config_id(config("bad"))
    await change(versions, config("one"))
    assert versions.refused is None
    assert (loads.loaded, loads.unloaded) == (["one"], [])


async def test_a_model_is_selected_by_name_by_version_by_both_or_by_role() -> None:
    versions = Loads().versions()
    await versions.reconfigure(config("full-1", others={"baseline": ref("probe-1")}))
    for model in ("champion", "task", "full-1", "task@full-1"):
        assert versions.engine_of(model).version.version == "full-1"
    for model in ("baseline", "probe-1", "task@probe-1"):
        assert versions.engine_of(model).version.version == "probe-1"
    with pytest.raises(RequestError) as caught:
        versions.engine_of("gpt-4")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


async def test_a_served_version_is_not_reloaded_and_an_unused_one_is_unloaded() -> None:
    loads = Loads()
    versions = loads.versions()
    await versions.reconfigure(config("one", others={"baseline": ref("probe")}))
    await change(versions, config("two", others={"baseline": ref("probe")}))
    assert (loads.loaded, loads.unloaded) == (["one", "probe", "two"], ["one"])
    await change(versions, config("probe", others={"baseline": ref("probe")}))
    assert (loads.loaded, loads.unloaded) == (["one", "probe", "two"], ["one", "two"])
    assert versions.champion is versions.engine_of("baseline")
    await change(versions, config("one", others={"baseline": ref("bad")}))
    assert versions.refused is None  # the champion does not need the pretrained model
    assert champion(versions) == "one"
    with pytest.raises(RequestError):
        versions.engine_of("baseline")


async def test_a_challenger_gets_its_share_only_of_the_requests_for_the_champion() -> None:
    loads = Loads()
    versions = loads.versions()
    await versions.reconfigure(config("one", challenger=ref("new", canary=1.0)))
    for model in ("champion", "task"):
        engine, arm = versions.assign_arm(model, unit="u")
        assert (engine.version.version, arm) == ("new", "canary")
    for model, version in (
        ("one", "one"),
        ("task@one", "one"),
        ("challenger", "new"),
        ("new", "new"),
    ):
        engine, arm = versions.assign_arm(model, unit="u")
        assert (engine.version.version, arm) == (version, None)
    assert versions.shadow_for("u") is None
    assert versions.is_challenger(versions.engine_of("new"))
    await change(versions, config("one", challenger=ref("new", shadow=1.0)))
    engine, arm = versions.assign_arm("champion", unit="u")
    shadow = versions.shadow_for("u")
    assert (engine.version.version, arm, shadow and shadow.version.version) == (
        "one",
        "champion",
        "new",
    )
    await change(versions, config("one"))
    assert versions.assign_arm("champion", unit="u")[1] == "champion"
    assert versions.shadow_for("u") is None
    assert (loads.loaded, loads.unloaded) == (["one", "new"], ["new"])


@pytest.mark.parametrize("first", [True, False])
async def test_a_challenger_that_cannot_be_loaded_is_reported_and_the_champion_serves(
    first: bool,
) -> None:
    versions = Loads().versions()
    if not first:
        await versions.reconfigure(config("one"))
    await change(versions, config("one", challenger=ref("bad", canary=1.0)))
    engine, arm = versions.assign_arm("champion", unit="u")
    assert (engine.version.version, arm) == ("one", "champion")
    assert (versions.absent, versions.refused) == (
        {"challenger": "the version is damaged"},
        None,
    )
    await change(versions, config("one"))
    assert versions.absent == {}


async def test_an_absent_version_is_retried_until_it_loads_and_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_versions, "RETRY_S", 0.01)
    monkeypatch.setattr(served_versions, "MAX_RETRY_S", 0.02)
    num_tries = 0

    loads = Loads()

    def load(uri: str, digest: str) -> Any:
        nonlocal num_tries
        num_tries += uri == "probe"
        return loads.load("bad" if uri == "probe" and num_tries < 4 else uri, digest)

    versions: ServedVersions[Any] = ServedVersions(load, read_secret=bytes)
    await versions.reconfigure(config("one", others={"baseline": ref("probe")}))
    retries = asyncio.create_task(versions.keep_retrying())
    await change(versions, config("bad"))  # is refused, so the previous versions stay
    while "baseline" not in versions.engines:
        await asyncio.sleep(0.01)
    assert versions.engine_of("baseline").version.version == "probe"
    assert (versions.refused and versions.refused.digest, versions.absent) == ("d-bad", {})
    await asyncio.sleep(0.1)
    assert (loads.loaded, num_tries) == (["one", "probe"], 4)
    retries.cancel()
    assert (
        len(
            [record for record in caplog.records if "probe cannot be loaded" in record.getMessage()]
        )
        == 1
    )


async def test_a_stopped_version_other_than_the_champion_is_reloaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served_versions, "RETRY_S", 0.01)

    loads = Loads()
    versions = loads.versions()
    await versions.reconfigure(config("one", others={"baseline": ref("probe")}))
    retries = asyncio.create_task(versions.keep_retrying())
    first = versions.engine_of("baseline")
    first.running = False
    while versions.engine_of("baseline") is first:
        await asyncio.sleep(0.01)
    assert (loads.loaded, loads.unloaded) == (["one", "probe", "probe"], ["probe"])
    retries.cancel()


async def test_a_promotion_after_a_failed_reload_of_the_stopped_champion_is_loaded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(served_versions, "RETRY_S", 0.01)
    available, failed = True, threading.Event()

    loads = Loads()

    def load(uri: str, digest: str) -> Any:
        if not available:
            failed.set()
            raise OSError("storage is unavailable")
        return loads.load(uri, digest)

    versions: ServedVersions[Any] = ServedVersions(load, read_secret=bytes)
    await versions.reconfigure(config("one"))
    versions.champion.running, available = False, False
    retries = asyncio.create_task(versions.keep_retrying())
    while not failed.is_set():
        await asyncio.sleep(0.01)
    retries.cancel()
    available = True
    await change(versions, config("two"))
    assert (champion(versions), versions.config_id) == ("two", config_id(config("two")))
    assert "cannot be reloaded" in caplog.text
    assert "storage is unavailable" in caplog.text
