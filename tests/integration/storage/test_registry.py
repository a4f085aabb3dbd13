"""Versions on S3 are complete or absent, equal files are one version, and concurrent writers set
one champion."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tailorbird import storage
from tailorbird.models.loading import checked_copy
from tailorbird.registry.caller import caller
from tailorbird.registry.champion import read_champion
from tailorbird.registry.draws import draw_secret
from tailorbird.registry.hybrid_routing import Routing
from tailorbird.registry.hybrids import hybrid_config
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    list_versions,
    read_parts,
    read_version,
    register,
    write_config,
)
from tailorbird.storage import s3
from tests.build import version_config
from tests.champions import set_champion


def version_folder(folder: Path, *, value: float = 0.0) -> Path:
    """Write the files of a probe and return their folder."""
    folder.mkdir()
    save_file(
        {"weight": np.full((2, 3), value, np.float32), "bias": np.zeros(2, np.float32)},
        folder / "head.safetensors",
    )
    config = version_config(
        kind="probe", classes=("a", "b"), created_at=f"2026-01-01T00:00:0{int(value)}+00:00"
    )
    write_config(folder, config)
    return folder


def hybrid_folder(folder: Path, versions: list[ModelVersion], *, threshold: float = 0.5) -> Path:
    """Write the only file of a hybrid and return its folder."""
    folder.mkdir()
    routing = Routing(by="cascade", threshold=threshold)
    write_config(folder, hybrid_config(versions[0], second=versions[1], routing=routing))
    return folder


@pytest.fixture
def versions(bucket: str, tmp_path: Path) -> list[ModelVersion]:
    """Two versions of one task."""
    return [
        register(f"{bucket}/task", version_folder(tmp_path / str(n), value=n)) for n in range(2)
    ]


def test_registered_versions_are_listed_oldest_first_and_read_back(
    bucket: str, versions: list[ModelVersion]
) -> None:
    assert list_versions(f"{bucket}/task")[0] == versions
    assert read_version(versions[1].uri) == versions[1]
    assert versions[0].name == "task"
    assert versions[0].version.startswith("probe-")


def test_an_upload_without_a_manifest_is_not_a_version(bucket: str, tmp_path: Path) -> None:
    folder = version_folder(tmp_path / "half")
    storage.upload_folder(folder, f"{bucket}/task/versions/probe-half")
    assert list_versions(f"{bucket}/task")[0] == []
    with pytest.raises(
        RegistryError,
        match=r"no complete model version at .*probe-half.*run `tailorbird models` to list",
    ):
        read_version(f"{bucket}/task/versions/probe-half")


def test_the_champion_is_changed_only_with_the_latest_etag_and_the_history_has_each_change(
    bucket: str, versions: list[ModelVersion]
) -> None:
    task_uri = f"{bucket}/task"
    first = set_champion(task_uri, versions[0], reason="the first")
    stored = read_champion(task_uri)
    assert stored is not None
    assert stored[0] == first
    second = set_champion(task_uri, versions[1], etag=stored[1], reason="better")
    for etag in (stored[1], None):
        with pytest.raises(s3.PreconditionFailed):
            set_champion(task_uri, versions[0], etag=etag, reason="too late")
    latest = read_champion(task_uri)
    assert latest is not None
    assert latest[0] == second
    entries = [storage.read_json(uri) for uri in storage.list_files(f"{task_uri}/history")]
    assert {entry["reason"]["text"] for entry in entries} == {"the first", "better"}
    assert {entry["by"] for entry in entries} == {caller()}


def test_exactly_one_of_several_concurrent_promotions_succeeds(
    bucket: str, versions: list[ModelVersion]
) -> None:
    def attempt(number: int) -> bool:
        try:
            set_champion(
                f"{bucket}/task",
                versions[number % 2],
                etag=None,
                reason=str(number),
                run="s3://none",
            )
        except s3.PreconditionFailed:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(8))) == 1


def test_a_damaged_local_copy_is_replaced_after_the_files_are_restored(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TAILORBIRD_CACHE", str(tmp_path / "cache"))
    folder = version_folder(tmp_path / "version", value=1)
    version = register(f"{bucket}/task", folder)
    head = (folder / "head.safetensors").read_bytes()
    (checked_copy(version.pinned) / "head.safetensors").write_bytes(b"the node's disk had a fault")
    assert (checked_copy(version.pinned) / "head.safetensors").read_bytes() == head
    file = f"{version.uri}/head.safetensors"
    for damaged in (b"other weights", None):
        shutil.rmtree(tmp_path / "cache")
        if damaged is None:
            storage.delete(file)
        else:
            storage.write_bytes(file, damaged)
        with pytest.raises(
            RegistryError, match=r"head.safetensors (was changed|is missing).*; restore"
        ):
            checked_copy(version.pinned)
        assert register(f"{bucket}/task", folder) == version
        assert (checked_copy(version.pinned) / "head.safetensors").read_bytes() == head


def test_the_digest_of_a_hybrid_covers_its_routing_and_both_parts_which_must_exist(
    bucket: str, tmp_path: Path, versions: list[ModelVersion]
) -> None:
    task_uri = f"{bucket}/task"
    hybrid = register(task_uri, hybrid_folder(tmp_path / "hybrid", versions))
    assert hybrid.version == f"hybrid-{hybrid.digest[:12]}"
    assert hybrid.hybrid is not None
    assert read_parts(hybrid.hybrid) == (versions[0], versions[1])
    assert hybrid in list_versions(task_uri)[0]
    assert register(task_uri, hybrid_folder(tmp_path / "again", versions)) == hybrid
    others = [
        register(task_uri, hybrid_folder(tmp_path / "threshold", versions, threshold=0.6)),
        register(task_uri, hybrid_folder(tmp_path / "turned", versions[::-1])),
    ]
    assert len({hybrid.digest, *(other.digest for other in others)}) == 3
    known = list_versions(task_uri)
    absent = versions[1].model_copy(update={"uri": f"{task_uri}/versions/full-absent"})
    changed = versions[1].model_copy(update={"digest": "0" * 64})
    for name, part, message in (
        ("absent", absent, "no complete model version"),
        ("changed", changed, "but 000.* is required"),
    ):
        with pytest.raises(RegistryError, match=message):
            register(task_uri, hybrid_folder(tmp_path / name, [versions[0], part]))
    assert list_versions(task_uri) == known


def test_concurrent_readers_create_one_secret_for_the_draws_of_a_task(bucket: str) -> None:
    with ThreadPoolExecutor(8) as readers:
        secrets = set(readers.map(draw_secret, [f"{bucket}/task"] * 8))
    assert secrets == {draw_secret(f"{bucket}/task")}
    assert len(secrets.pop()) == 32
    assert draw_secret(f"{bucket}/other") != draw_secret(f"{bucket}/task")
