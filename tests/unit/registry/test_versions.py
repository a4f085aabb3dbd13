"""A version's `config.json`: what older ones lack, and what a hybrid's must name."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tailorbird.models.loading import checked_copy
from tailorbird.registry.routing import Routing
from tailorbird.registry.versions import (
    Hybrid,
    ModelVersion,
    PinnedVersion,
    Prompting,
    RegistryError,
    VersionConfig,
    hybrid_config,
    is_intact,
    register,
    write_config,
)

PLAIN: dict[str, Any] = {
    "kind": "probe",
    "classes": ["a", "b"],
    "base_model": "s3://models/_base/none",
    "max_length": 16,
    "dtype": "float32",
    "code": "s3://models/none.zip",
    "recipe_hash": "0" * 64,
    "created_at": "2026-01-01T00:00:00+00:00",
}
ROUTING = {"by": "group", "column": "sex", "values": ["f"], "threshold": None}
PARTS = {
    "incumbent": {"uri": "s3://models/task/versions/probe-1", "digest": "1"},
    "candidate": {"uri": "s3://models/task/versions/full-2", "digest": "2"},
}


def version(kind: str, **changed: Any) -> ModelVersion:
    fields = PLAIN | {"kind": kind, "name": "task", "version": kind, "uri": f"s3://{kind}", "digest": kind} | changed
    return ModelVersion.model_validate(fields)


def parsed(content: dict[str, Any]) -> VersionConfig:
    return VersionConfig.model_validate_json(json.dumps(content))


def test_an_older_config_has_no_temperature_and_no_parts() -> None:
    config = parsed(PLAIN)
    assert (config.temperature, config.hybrid) == (1.0, None)


@pytest.mark.parametrize("temperature", [0.0, -1.0, "Infinity", None])
def test_a_temperature_divides_so_it_is_a_number_above_zero(temperature: Any) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        parsed(PLAIN | {"temperature": temperature})


@pytest.mark.parametrize("routing", [ROUTING, {"by": "confidence", "threshold": 0.7}])
def test_a_hybrid_survives_its_json(routing: dict[str, Any]) -> None:
    config = parsed(PLAIN | {"kind": "hybrid", "hybrid": {"routing": routing, **PARTS}})
    assert config.hybrid is not None
    assert isinstance(config.hybrid.routing, Routing)
    assert config.hybrid.candidate.digest == "2"
    assert VersionConfig.model_validate_json(config.model_dump_json()) == config
    assert VersionConfig.model_validate(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"kind": "hybrid"}, "the kind `hybrid`, and no other"),
        ({"kind": "hybrid", "hybrid": None}, "the kind `hybrid`, and no other"),
        ({"kind": "full", "hybrid": {"routing": ROUTING, **PARTS}}, "the kind `hybrid`, and no other"),
        ({"kind": "hybrid", "hybrid": {"routing": ROUTING, "incumbent": PARTS["incumbent"]}}, "candidate"),
        ({"kind": "hybrid", "hybrid": {"routing": {"by": "group"}, **PARTS}}, "takes a column and its values"),
        ({"kind": "hybrid", "hybrid": {"routing": ROUTING | {"chance": 1}, **PARTS}}, "chance"),
    ],
)
def test_a_config_with_half_a_hybrid_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parsed(PLAIN | changed)


def test_the_config_of_a_hybrid_names_both_and_knows_the_classes_of_either() -> None:
    incumbent = version("probe", classes=["b", "c"], created_at="2026-01-02T00:00:00+00:00")
    config = hybrid_config(
        version("full"), incumbent=incumbent, routing=Routing(by="group", column="sex", values=("f",))
    )
    assert config.classes == ("a", "b", "c")
    assert config.hybrid == Hybrid(
        routing=Routing(by="group", column="sex", values=("f",)),
        incumbent=PinnedVersion(uri="s3://probe", digest="probe"),
        candidate=PinnedVersion(uri="s3://full", digest="full"),
    )
    assert config.created_at == "2026-01-02T00:00:00+00:00"


@pytest.mark.parametrize(
    ("kind", "file"), [("lora", "adapter/adapter_model.safetensors"), ("full", "model.safetensors")]
)
def test_peft_2500_a_chat_version_without_its_weights_is_not_registered(tmp_path: Path, kind: Any, file: str) -> None:
    prompting = Prompting(system=None, max_new_tokens=8)
    config = VersionConfig(
        kind=kind, classes=(), base_model="s3://m/b", max_length=8, dtype="float32", code="", recipe_hash="",
        created_at="2026-11-25T00:00:00+00:00", prompting=prompting,
    )  # fmt: skip
    folder, task_uri = tmp_path / "version", (tmp_path / "task").as_uri()
    folder.mkdir()
    write_config(folder, config)
    with pytest.raises(RegistryError, match=f"lacks {file}"):
        register(task_uri, folder)
    write_config(folder, config.model_copy(update={"kind": "few_shot"}))
    assert register(task_uri, folder).prompting == prompting  # a prompt has none


def test_who_registers_a_damaged_version_again_mends_it(tmp_path: Path) -> None:
    config = VersionConfig.model_validate(PLAIN)
    folder, task_uri = tmp_path / "version", (tmp_path / "task").as_uri()
    folder.mkdir()
    write_config(folder, config)
    (folder / "head.safetensors").write_bytes(b"weights")
    version = register(task_uri, folder)
    there = tmp_path / "task" / "versions" / version.version
    (there / "head.safetensors").write_bytes(b"damaged")
    assert not is_intact(there)
    with pytest.raises(RegistryError, match=r"head.safetensors is not what the version's manifest names; restore it"):
        checked_copy(version.uri)
    assert not is_intact(there)  # what is no copy is not thrown away
    assert register(task_uri, folder) == version
    assert checked_copy(version.uri) == there
    (there / "config.json").unlink()
    assert register(task_uri, folder) == version
    assert is_intact(there)


@pytest.mark.parametrize(
    ("kind", "file"), [("lora", "adapter/adapter_model.safetensors"), ("full", "encoder.safetensors")]
)
def test_a_classifier_with_a_head_alone_is_not_registered_as_what_was_trained(
    tmp_path: Path, kind: str, file: str
) -> None:
    folder, task_uri = tmp_path / "version", (tmp_path / "task").as_uri()
    folder.mkdir()
    (folder / "head.safetensors").write_bytes(b"a head")
    write_config(folder, parsed(PLAIN | {"kind": kind}))
    with pytest.raises(RegistryError, match=f"lacks {file}"):
        register(task_uri, folder)
    write_config(folder, parsed(PLAIN | {"kind": kind, "engine": "openvino", "exported_from": PARTS["candidate"]}))
    assert register(task_uri, folder).engine == "openvino"  # whose encoder lies in files of the engine's


def test_the_task_of_a_version_is_chat_where_it_has_a_prompt() -> None:
    chat = version("full", classes=[], prompting={"system": None, "max_new_tokens": 8})
    assert (version("probe").task, chat.task) == ("classification", "chat")
