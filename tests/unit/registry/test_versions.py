"""Tests of the config of a version, of its registration and of a champion."""

import json
from pathlib import Path
from typing import Any

import pytest

from tailorbird.models.loading import checked_copy
from tailorbird.registry.champion import Champion, ChangeReason, ParityResult
from tailorbird.registry.endpoint import Endpoint
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.kinds import KINDS, Kind
from tailorbird.registry.shared_base import selectable_versions
from tailorbird.registry.version_files import version_faults
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    RegistryError,
    Retrieval,
    VersionConfig,
    calls_endpoint,
    register,
    spec_at,
    write_config,
)
from tests import build

PLAIN = build.version_config(kind="probe", classes=("a", "b")).model_dump(mode="json")
ENDPOINT = {
    "url": "https://host/v1",
    "model": "m",
    "api_key": "env://KEY",
    "reported_model": "m-2026-01-01",
}


def version(kind: str, **changed: Any) -> ModelVersion:
    identity = {"uri": f"s3://{kind}", "digest": kind}
    return build.version(kind, **{"kind": kind, "classes": ("a", "b")} | identity | changed)


def parsed(content: dict[str, Any]) -> VersionConfig:
    return VersionConfig.model_validate_json(json.dumps(content))


def test_the_config_of_a_hybrid_has_both_parts_and_the_classes_of_both() -> None:
    first = version("probe", classes=["b", "c"], created_at="2026-01-02T00:00:00+00:00")
    config = hybrid_config(
        first, second=version("full"), routing=Routing(by="group", column="sex", values=("f",))
    )
    assert config.classes == ("a", "b", "c")
    assert config.hybrid is not None
    assert [part.digest for part in config.hybrid.parts] == ["probe", "full"]
    assert config.created_at == "2026-01-02T00:00:00+00:00"


def test_the_config_of_a_chat_hybrid_has_the_prompting_of_a_part_with_training_rows() -> None:
    plain = Prompting(system=None, max_new_tokens=8)
    index = plain.model_copy(
        update={"retrieval": Retrieval(num_examples=1, max_prompt_tokens=64, index_sha256="0" * 64)}
    )
    first, second = (
        version("nearest", classes=[], prompting=index),
        version("lora", classes=[], prompting=plain),
    )
    config = hybrid_config(first, second=second, routing=Routing(by="cascade", threshold=0.5))
    assert (config.task, config.contains_training_text) == ("chat", True)
    with pytest.raises(RegistryError, match="a hybrid needs two versions for the same task"):
        hybrid_config(
            version("bag_of_words"), second=second, routing=Routing(by="cascade", threshold=0.5)
        )


def test_registering_a_damaged_version_again_repairs_it(tmp_path: Path) -> None:
    config = VersionConfig.model_validate(PLAIN)
    folder, task_uri = tmp_path / "version", (tmp_path / "task").as_uri()
    folder.mkdir()
    write_config(folder, config)
    (folder / "head.safetensors").write_bytes(b"weights")
    version = register(task_uri, folder)
    stored = tmp_path / "task" / "versions" / version.version
    (stored / "head.safetensors").write_bytes(b"damaged")
    with pytest.raises(RegistryError, match=r"head.safetensors was changed"):
        checked_copy(version.pinned)
    assert register(task_uri, folder) == version
    assert checked_copy(version.pinned) == stored
    (stored / "config.json").unlink()
    assert register(task_uri, folder) == version
    assert version_faults(version.pinned) == []


PROMPTED = {"kind": "endpoint_zero_shot", "prompting": {"system": None, "max_new_tokens": 8}}


def test_an_endpoint_needs_no_weights_and_shares_no_base_model(tmp_path: Path) -> None:
    task_uri = (tmp_path / "task").as_uri()
    for name in ("endpoint", "probe"):
        (tmp_path / name).mkdir()
    write_config(tmp_path / "endpoint", parsed(PLAIN | PROMPTED | {"endpoint": ENDPOINT}))
    write_config(tmp_path / "probe", parsed(PLAIN))
    (tmp_path / "probe" / "head.safetensors").write_bytes(b"weights")
    endpoint, probe = (register(task_uri, tmp_path / name) for name in ("endpoint", "probe"))
    assert endpoint.endpoint == Endpoint.model_validate(ENDPOINT)
    for version in (endpoint, probe):
        assert selectable_versions(version, task_uri=task_uri, shares_chat_base=True) == []


def test_a_hybrid_calls_an_endpoint_if_a_part_does() -> None:
    routing = Routing(by="cascade", threshold=0.5)
    parts = [
        version(kind, uri=f"s3://models/task/versions/{kind}-000000000001")
        for kind in ("bag_of_words", "probe")
    ]
    assert not calls_endpoint(hybrid_config(parts[0], second=parts[1], routing=routing))
    dear = parts[1].model_copy(
        update={"uri": "s3://models/task/versions/endpoint-zero-shot-000000000001"}
    )
    assert calls_endpoint(hybrid_config(parts[0], second=dear, routing=routing))


def test_labels_are_integers_only_if_the_label_column_holds_integers() -> None:
    strings = parsed(PLAIN | {"classes": ["1", "2"]})
    integers = strings.model_copy(update={"integer_labels": True})
    assert [strings.typed_label("1"), integers.typed_label("1"), integers.typed_label("none")] == [
        "1",
        1,
        "none",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_name_of_a_version_has_its_kind(kind: Kind) -> None:
    name = f"{kind.replace('_', '-')}-0123456789ab"
    assert spec_at(f"s3://registry/task/versions/{name}") is KINDS[kind]


def test_parity_is_needed_once_and_not_after_a_rollback() -> None:
    promoted = ChangeReason(change="promotion", text="FINE_TUNE")
    fields = {"uri": "s3://m/t/versions/full-1", "digest": "1", "run": "", "version": "full-1"}
    champion = Champion.model_validate(fields | {"reason": promoted, "since": "2026"})
    assert champion.needs_parity
    parity = ParityResult(rows=64, matching=63, at="2026")
    assert not champion.model_copy(update={"parity": parity}).needs_parity
    rolled_back = ChangeReason(change="rollback", text="slow")
    assert not champion.model_copy(update={"reason": rolled_back}).needs_parity


@pytest.mark.parametrize("kind", KINDS)
def test_the_properties_of_a_kind_do_not_contradict_each_other(kind: Kind) -> None:
    spec = KINDS[kind]
    assert not (spec.calls_endpoint and (spec.uses_base or spec.has_bag))
    assert not (spec.has_index and spec.has_bag)  # an index is for chat, a bag for classification
    assert spec.learns_from_rows or not spec.holds_training_text
    if spec.mixed is not None:
        mixed = KINDS[spec.mixed]
        assert mixed.is_mixed
        assert (mixed.base, mixed.is_baseline) == (spec.base, spec.is_baseline)
