"""Changed, missing and additional files of a version of each kind: on S3, in a local copy, and by
each command."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.testing import CliRunner

from serving.batch_jobs.scoring import resolve_version
from tailorbird.checks.verify_files import registered_faults
from tailorbird.cli.app import app
from tailorbird.models.loading import checked_copy
from tailorbird.registry.kinds import Kind, spec_of
from tailorbird.registry.shared_base import selectable_versions
from tailorbird.registry.version_files import (
    EVIDENCE_FILES,
    is_evidence,
    require_intact,
    version_faults,
)
from tailorbird.registry.versions import (
    BAG_FILES,
    INDEX_FILES,
    ModelVersion,
    PinnedVersion,
    RegistryError,
    read_artifact_config,
    read_pinned,
    read_version,
    register,
    write_config,
)
from tailorbird.registry.versions import VersionConfig as Config
from tailorbird.release.serving import challenger_version
from tests import build
from tests.unit.registry.test_versions import ENDPOINT, PLAIN

ROUTING = {"by": "group", "column": "sex", "values": ["f"], "threshold": None}

CHAT_KINDS = ("few_shot", "retrieved", "nearest")
CHAT = "chat "  # prefix of the kinds that both tasks have
NAMES = (*get_args(Kind), *(f"{CHAT}{kind}" for kind in ("zero_shot", "lora", "full")))


def files_of(name: str) -> tuple[Config, list[str]]:
    """Return the config of a version, and the names of its other files."""
    kind = name.removeprefix(CHAT)
    spec = spec_of(kind)
    prompting: dict[str, Any] = {"system": None, "max_new_tokens": 8}
    if spec.has_index:
        prompting["retrieval"] = {"num_examples": 1, "max_prompt_tokens": 64, "index_sha256": "0"}
    if spec.calls_endpoint:
        changes = {"kind": kind, "prompting": prompting, "endpoint": ENDPOINT}
        return Config.model_validate(PLAIN | changes), [*INDEX_FILES] if spec.has_index else []
    if kind in CHAT_KINDS or name.startswith(CHAT):
        config = Config.model_validate(
            PLAIN | {"kind": kind, "classes": [], "prompting": prompting}
        )
        weights = [config.weights_file] if config.weights_file else []
        return config, [*weights, *(INDEX_FILES if spec.has_index else ())]
    config = Config.model_validate(PLAIN | {"kind": kind})
    names = [config.weights_file] if config.weights_file else []
    names += BAG_FILES if spec.has_bag else ()
    names += ["adapter/adapter_config.json"] if "lora" in kind else []
    names += ["head.safetensors"] if kind != "bag_of_words" else []
    return config, names


def registered(task: Path, name: str) -> ModelVersion:
    """Register a version of a kind, with evidence next to it."""
    folder = task.parent / f"made-{name}"
    folder.mkdir()
    names: list[str] = []
    if name == "hybrid":
        parts = [registered(task, kind).pinned.model_dump() for kind in ("probe", "full")]
        hybrid = {"routing": ROUTING, "first": parts[0], "second": parts[1]}
        config = Config.model_validate(PLAIN | {"kind": name, "hybrid": hybrid})
    else:
        config, names = files_of(name)
    for file in names:
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(f"{name} {file}")
    write_config(folder, config)
    version = register(task.as_uri(), folder)
    stored = path_of(version)
    for file in (*EVIDENCE_FILES, "predictions/candidate.parquet"):
        (stored / file).parent.mkdir(exist_ok=True)
        (stored / file).write_text("evidence")
    return version


def path_of(version: ModelVersion | PinnedVersion) -> Path:
    return Path(version.uri.removeprefix("file://"))


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def add(file: Path) -> None:
    file.with_name(f"added-{file.name}").write_text("{}")


def verify(version: PinnedVersion) -> None:
    """Raise RegistryError with the faults that `tailorbird verify` reports."""
    if faults := list(registered_faults("the candidate", version.uri, digest=version.digest)):
        raise RegistryError("; ".join(faults))


CHECKS: dict[str, Callable[[PinnedVersion], object]] = {
    "promote and deploy": require_intact,
    "replica": checked_copy,
    "verify": verify,
}


@pytest.mark.parametrize("name", sorted({*NAMES} - {"hybrid"}))
def test_peft_2500_a_version_without_one_of_its_files_is_not_registered(
    tmp_path: Path, name: str
) -> None:
    config, names = files_of(name)
    for missing in names:
        if missing == "adapter/adapter_config.json":
            continue
        folder = tmp_path / f"without-{Path(missing).name}"
        folder.mkdir()
        write_config(folder, config)
        for file in names:
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text("content")
        (folder / missing).unlink()
        with pytest.raises(RegistryError, match=missing):
            register((tmp_path / "task").as_uri(), folder)
    assert not (tmp_path / "task").exists()


@pytest.mark.parametrize("name", NAMES)
def test_each_changed_missing_or_added_file_of_a_version_is_refused(
    tmp_path: Path, name: str
) -> None:
    version = registered(tmp_path / "task", name)
    stored, copy = path_of(version), tmp_path / "copy"
    for check in CHECKS.values():
        check(version.pinned)
    shutil.copytree(stored, copy)
    files = [*json.loads((stored / "manifest.json").read_bytes()), "manifest.json"]
    assert set(files) == {
        "config.json",
        "manifest.json",
        *([] if name == "hybrid" else files_of(name)[1]),
    }
    damages: list[tuple[Callable[[Path], None], str]] = [
        (flip, r"{} was changed: its sha256 is"),
        (Path.unlink, "{} is missing"),
        (add, r"added-{} is not in the manifest"),
    ]
    for file in files:
        for damage, message in damages:
            damage(stored / file)
            expected = message.format(file if damage is not add else Path(file).name)
            for caller, check in CHECKS.items():
                with pytest.raises(RegistryError) as refusal:
                    check(version.pinned)
                assert expected.replace("\\", "") in str(refusal.value), caller
            shutil.rmtree(stored)
            shutil.copytree(copy, stored)
    for check in CHECKS.values():
        check(version.pinned)


def test_a_damaged_version_is_listed_beside_the_others(tmp_path: Path) -> None:
    sound, damaged = (registered(tmp_path / "task", name) for name in ("probe", "full"))
    flip(path_of(damaged) / "config.json")
    recipe = tmp_path / "recipe.json"
    content = build.recipe(name="task", registry=tmp_path.as_uri()).model_dump_json()
    recipe.write_text(content)
    listing = CliRunner().invoke(app, ["models", str(recipe)]).output
    assert f"{sound.created_at}  {sound.uri}" in listing
    assert f"damaged: {damaged.uri}: " in listing
    assert f"  {damaged.uri}" not in listing


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_a_manifest_that_was_swapped_together_with_a_file_is_refused(
    tmp_path: Path, check: Callable[[PinnedVersion], object]
) -> None:
    version = registered(tmp_path / "task", "probe")
    (tmp_path / "made-probe" / "head.safetensors").write_text("other weights")
    other = register((tmp_path / "task").as_uri(), tmp_path / "made-probe")
    shutil.rmtree(path_of(version))
    shutil.copytree(path_of(other), path_of(version))
    assert (
        version_faults(PinnedVersion(uri=version.uri, digest=other.digest)) == []
    )  # consistent in itself
    with pytest.raises(RegistryError, match=r"manifest\.json was changed: its sha256 is .*, not"):
        check(version.pinned)
    with pytest.raises(RegistryError, match="was changed: its manifest has the digest"):
        read_pinned(version.pinned)


def test_a_version_that_was_swapped_together_with_its_manifest_does_not_match_its_name(
    tmp_path: Path,
) -> None:
    task_uri = (tmp_path / "task").as_uri()
    version, other, served = (
        registered(tmp_path / "task", name) for name in ("few_shot", "chat zero_shot", "chat lora")
    )
    assert len(selectable_versions(served, task_uri=task_uri, shares_chat_base=True)) == 2
    shutil.rmtree(path_of(version))
    shutil.copytree(path_of(other), path_of(version))
    message = (
        f"{version.uri} was changed: its manifest has the digest {other.digest}, but its name has "
    )
    reads: tuple[Callable[[], object], ...] = (
        partial(read_version, version.uri),
        partial(read_artifact_config, version.uri),
        partial(challenger_version, version.version, task_uri=task_uri),
        partial(resolve_version, task_uri, version.version),
    )
    for read in reads:
        with pytest.raises(RegistryError, match=message):
            read()
    assert selectable_versions(served, task_uri=task_uri, shares_chat_base=True) == [other]


@pytest.mark.parametrize("name", ["probe", "full"])
def test_a_changed_part_of_a_hybrid_is_refused(tmp_path: Path, name: str) -> None:
    hybrid = registered(tmp_path / "task", "hybrid")
    assert hybrid.hybrid is not None
    parts = {part.uri.rpartition("/")[2].partition("-")[0]: part for part in hybrid.hybrid.parts}
    flip(path_of(parts[name]) / "head.safetensors")
    for check in (require_intact, verify):
        with pytest.raises(RegistryError, match=r"head\.safetensors was changed"):
            check(hybrid.pinned)


def test_a_config_that_differs_from_the_manifest_is_never_read(tmp_path: Path) -> None:
    version = registered(tmp_path / "task", "probe")
    config = path_of(version) / "config.json"
    config.write_text(config.read_text().replace("s3://models/code.zip", "s3://models/evil.zip"))
    for read in (read_version, read_artifact_config):
        with pytest.raises(
            RegistryError, match=r"config\.json was changed: its sha256 is .*, but the manifest has"
        ):
            read(version.uri)
    (path_of(version) / "manifest.json").write_text("[]")
    with pytest.raises(RegistryError, match=r"manifest\.json is not the manifest of a version"):
        read_version(version.uri)


def test_only_evidence_may_be_written_next_to_a_version() -> None:
    assert all(map(is_evidence, (*EVIDENCE_FILES, "predictions/candidate.parquet")))
    assert not any(
        map(
            is_evidence,
            ("tokenizer.json", "predictions/x.safetensors", "adapter/evidence.json", "x.py"),
        )
    )
