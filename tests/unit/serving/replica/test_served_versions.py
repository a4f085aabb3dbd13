"""Versions are swapped while they answer, and the last configuration wins."""

import asyncio
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


async def test_the_previous_version_serves_until_a_later_one_is_loaded_in_the_background() -> None:
    loads = Loads()
    versions = loads.versions()
    with pytest.raises(RequestError):
        _ = versions.champion
    with pytest.raises(ValueError, match="damaged"):
        await versions.reconfigure(config("bad"))
    await versions.reconfigure(config("one"))  # the first one is loaded before this returns
    assert (champion(versions), versions.config_id) == ("one", config_id(config("one")))
    loads.go.clear()
    for uri in ("two", "three"):
        await versions.reconfigure(config(uri))
    assert (champion(versions), loads.unloaded) == ("one", [])
    loads.go.set()
    await settle(versions)
    assert (champion(versions), loads.unloaded) == ("three", ["one", "two"])


async def test_a_model_is_selected_by_name_by_version_by_both_or_by_role() -> None:
    versions = Loads().versions()
    await versions.reconfigure(config("full-1", selectable={"baseline": ref("probe-1")}))
    for model in ("champion", "task", "full-1", "task@full-1"):
        assert versions.engine_of(model).version.version == "full-1"
    for model in ("baseline", "probe-1", "task@probe-1"):
        assert versions.engine_of(model).version.version == "probe-1"
    with pytest.raises(RequestError) as caught:
        versions.engine_of("gpt-4")
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


async def test_only_requests_for_the_champion_have_an_arm_and_a_shadow_gets_its_share() -> None:
    loads = Loads()
    versions = loads.versions()

    def arm_of(model: str) -> tuple[str, str | None]:
        engine, arm = versions.assign_arm(model)
        return engine.version.version, arm

    await versions.reconfigure(config("one", challenger=ref("new", shadow=0.0)))
    assert {arm_of(model) for model in ("champion", "task")} == {("one", "champion")}
    assert {arm_of(model) for model in ("one", "task@one")} == {("one", None)}
    assert {arm_of(model) for model in ("challenger", "new")} == {("new", None)}
    assert versions.draw_shadow() is None
    assert versions.is_challenger(versions.engine_of("new"))
    await change(versions, config("one", challenger=ref("new", shadow=1.0)))
    assert arm_of("champion") == ("one", "champion")
    assert versions.draw_shadow() is versions.engine_of("new")
    await change(versions, config("one", challenger=ref("new", shadow=0.25)))
    drawn = [versions.draw_shadow() is not None for _ in range(4000)]
    assert sum(drawn) / len(drawn) == pytest.approx(0.25, abs=0.05)  # seven standard errors
    await change(versions, config("one", challenger=ref("bad", shadow=1.0)))
    assert arm_of("champion") == ("one", "champion")
    assert versions.draw_shadow() is None
    assert (loads.loaded, loads.unloaded) == (["one", "new"], ["new"])


async def test_absent_and_stopped_versions_are_retried_until_they_load(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(served_versions, "RETRY_S", 0.01)
    monkeypatch.setattr(served_versions, "MAX_RETRY_S", 0.02)
    loads = Loads()
    failing = ["probe"] * 3

    def load(uri: str, digest: str) -> Any:
        if uri in failing:
            failing.remove(uri)
            raise OSError("storage is unavailable")
        return loads.load(uri, digest)

    versions: ServedVersions[Any] = ServedVersions(load)
    await versions.reconfigure(config("one", selectable={"baseline": ref("probe")}))
    retries = asyncio.create_task(versions.keep_retrying())
    await change(versions, config("bad"))  # is refused, so the previous versions stay
    while "baseline" not in versions.engines:
        await asyncio.sleep(0.01)
    assert versions.refused is not None
    assert versions.absent == {}
    await asyncio.sleep(0.1)
    assert loads.loaded == ["one", "probe"]
    stopped = versions.engine_of("baseline")
    stopped.running = False
    while versions.engine_of("baseline") is stopped:
        await asyncio.sleep(0.01)
    # A promotion is loaded even if the stopped champion could not be reloaded.
    failing += ["one"] * 2
    versions.champion.running = False
    while len(failing) == 2:
        await asyncio.sleep(0.01)
    retries.cancel()
    await change(versions, config("two"))
    assert (champion(versions), versions.config_id) == ("two", config_id(config("two")))
