"""The table of kinds, and what follows from a property of a kind for its versions."""

from dataclasses import replace
from pathlib import Path

import pytest

from tailorbird.registry.kinds import KINDS, Kind
from tailorbird.registry.shared_base import versions_on_same_base
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    register,
    spec_at,
    write_config,
)
from tailorbird.registry.versions import VersionConfig as Config
from tests.unit.registry.test_versions import PLAIN


def config(kind: Kind, **changes: object) -> Config:
    return Config.model_validate(PLAIN | {"kind": kind} | changes)


def registered(folder: Path, kind: Kind, *, files: tuple[str, ...]) -> ModelVersion:
    """Register a version in a task next to the folder."""
    folder.mkdir()
    for file in files:
        (folder / file).write_text(folder.name)
    write_config(folder, config(kind))
    return register(folder.with_name("task").as_uri(), folder)


@pytest.mark.parametrize("kind", KINDS)
def test_the_properties_of_a_kind_do_not_contradict_each_other(kind: Kind) -> None:
    spec = KINDS[kind]
    assert spec.title
    assert not (spec.calls_endpoint and (spec.uses_base or spec.has_bag))
    assert not (
        spec.has_index and spec.has_bag
    )  # an index is for chat, a bag of words for classification
    assert spec.learns_from_rows or not spec.holds_training_text
    if spec.mixed is not None:
        mixed = KINDS[spec.mixed]
        assert mixed.is_mixed
        assert (mixed.base, mixed.is_baseline) == (spec.base, spec.is_baseline)


def test_a_baseline_that_changes_its_encoder_does_not_share_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task_uri = (tmp_path / "task").as_uri()
    head, encoder = "head.safetensors", "encoder.safetensors"
    probe = registered(tmp_path / "one", "probe", files=(head,))
    centroid = registered(tmp_path / "two", "centroid", files=(head, encoder))
    assert versions_on_same_base(probe, task_uri=task_uri, limit=4) == [centroid]
    monkeypatch.setitem(KINDS, "centroid", replace(KINDS["centroid"], base="changed"))
    assert KINDS["centroid"].is_baseline
    assert not centroid.shares_base
    assert versions_on_same_base(probe, task_uri=task_uri, limit=4) == []
    with pytest.raises(RegistryError, match=f"{encoder} is missing"):  # its weights are required
        registered(tmp_path / "three", "centroid", files=(head,))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("runtime", ["", "-torch-bfloat16", "-onnxruntime-int8"])
def test_the_name_of_a_version_has_its_kind(kind: Kind, runtime: str) -> None:
    name = f"{kind.replace('_', '-')}{runtime}-0123456789ab"
    assert spec_at(f"s3://registry/task/versions/{name}") is KINDS[kind]
