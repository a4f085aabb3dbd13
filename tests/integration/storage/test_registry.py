"""Versions on S3 are complete or absent, equal files are one version, and concurrent writers set
one champion."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tailorbird import storage
from tailorbird.models.loading import checked_copy, load_artifact
from tailorbird.registry import security_log
from tailorbird.registry.champion import champion_version, read_champion
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
from tailorbird.release.promotion import promote_version
from tailorbird.release.runs import PromotionRefused
from tailorbird.storage import s3
from tests.build import version_config
from tests.champions import set_champion
from tests.finished_runs import candidate_record, verdict_of, write_finished_run


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


def write_run(
    task_uri: str, *, candidate: ModelVersion, incumbent: ModelVersion, outcome: str
) -> None:
    versions = {"candidate": candidate_record(candidate), "incumbent": candidate_record(incumbent)}
    write_finished_run(f"{task_uri}/runs/r", versions=versions, verdict=verdict_of(outcome))


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


def test_the_champion_is_changed_only_with_the_latest_etag(
    bucket: str, versions: list[ModelVersion]
) -> None:
    task_uri = f"{bucket}/task"
    first = set_champion(task_uri, versions[0], etag=None, reason="the first", run="s3://none")
    stored = read_champion(task_uri)
    assert stored is not None
    assert stored[0] == first
    set_champion(task_uri, versions[1], etag=stored[1], reason="better", run="s3://none")
    with pytest.raises(s3.PreconditionFailed):
        set_champion(task_uri, versions[0], etag=stored[1], reason="too late", run="s3://none")
    with pytest.raises(s3.PreconditionFailed):
        set_champion(
            task_uri, versions[0], etag=None, reason="as if there were none", run="s3://none"
        )
    latest = read_champion(task_uri)
    assert latest is not None
    assert latest[0].uri == versions[1].uri
    assert len(storage.list_files(f"{task_uri}/history")) == 2


def test_each_change_of_the_champion_is_in_the_security_log(
    bucket: str, versions: list[ModelVersion]
) -> None:
    task_uri, today = f"{bucket}/task", datetime.now(UTC).date()
    first = set_champion(task_uri, versions[0], reason="the first")
    stored = read_champion(task_uri)
    assert stored is not None
    set_champion(task_uri, versions[1], etag=stored[1], reason="better")
    with pytest.raises(s3.PreconditionFailed):
        set_champion(task_uri, versions[0], etag=stored[1], reason="too late")
    events = security_log.read(bucket, since=today, until=datetime.now(UTC).date()).events
    names = [version.version for version in versions]
    assert [event.what.partition(": s3://")[0] for event in events] == [
        f"task: {names[0]} becomes the champion: the first",
        f"task: {names[1]} becomes the champion: better",
        f"task: {names[0]} becomes the champion: too late",
        f"failed: task: {names[0]} becomes the champion: too late",
    ]
    assert {(event.kind, event.who) for event in events} == {("champion", security_log.caller())}
    before, after = events[1].before, events[1].after
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert (events[0].before, before) == (None, events[0].after)
    assert (before["digest"], after["digest"]) == (first.digest, versions[1].digest)
    assert after["reason"] == {
        "change": "promotion",
        "text": "better",
        "override": None,
        "runtime": None,
    }


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


@pytest.mark.parametrize(
    ("outcome", "winner"), [("FINE_TUNE", 1), ("STAY", 0), ("INSUFFICIENT_EVIDENCE", 0)]
)
def test_only_the_version_that_the_verdict_chose_is_promoted(
    bucket: str, versions: list[ModelVersion], outcome: str, winner: int
) -> None:
    task_uri = f"{bucket}/task"
    write_run(task_uri, candidate=versions[1], incumbent=versions[0], outcome=outcome)
    with pytest.raises(PromotionRefused, match="no verdict chose"):
        promote_version(task_uri, version=versions[1 - winner].uri)
    assert read_champion(task_uri) is None
    champion = promote_version(task_uri)
    assert (champion.uri, champion.digest) == (versions[winner].uri, versions[winner].digest)
    assert promote_version(task_uri) == champion  # a second promotion changes nothing
    assert len(storage.list_files(f"{task_uri}/history")) == 1


def test_a_verdict_about_another_champion_promotes_no_version(
    bucket: str, versions: list[ModelVersion], tmp_path: Path
) -> None:
    task_uri = f"{bucket}/task"
    newer = register(task_uri, version_folder(tmp_path / "newer", value=2))
    set_champion(task_uri, newer, etag=None, reason="by a later run", run="s3://none")
    write_run(task_uri, candidate=versions[1], incumbent=versions[0], outcome="FINE_TUNE")
    with pytest.raises(
        PromotionRefused,
        match=r"compared with no champion, but the champion is now .*; run the recipe again",
    ):
        promote_version(task_uri)
    champion = read_champion(task_uri)
    assert champion is not None
    assert champion[0].uri == newer.uri


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


def test_a_champion_with_a_changed_file_or_manifest_is_rejected(
    bucket: str, tmp_path: Path
) -> None:
    folder = version_folder(tmp_path / "version", value=7)
    version = register(f"{bucket}/task", folder)
    champion = set_champion(f"{bucket}/task", version, reason="because")
    assert champion_version(champion) == version
    storage.write_bytes(f"{version.uri}/head.safetensors", b"other weights")
    with pytest.raises(RegistryError, match=r"head.safetensors"):
        load_artifact(version.uri)
    # a forger changes both the file and the manifest
    manifest = storage.read_json(f"{version.uri}/manifest.json")
    manifest["head.safetensors"]["sha256"] = "0" * 64
    storage.write_json(f"{version.uri}/manifest.json", manifest)
    with pytest.raises(RegistryError, match="digest"):
        read_version(version.uri)
    with pytest.raises(RegistryError, match="digest"):
        champion_version(champion)
    assert register(f"{bucket}/task", folder) == version


def test_a_hybrid_is_a_version_whose_digest_covers_its_routing_and_both_parts(
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
    assert (
        set_champion(task_uri, hybrid, etag=None, reason="HYBRID by rule 3", run="s3://none").digest
        == hybrid.digest
    )


def test_a_hybrid_of_a_missing_or_changed_version_is_rejected(
    bucket: str, tmp_path: Path, versions: list[ModelVersion]
) -> None:
    task_uri = f"{bucket}/task"
    absent = versions[1].model_copy(update={"uri": f"{task_uri}/versions/full-absent"})
    other = versions[1].model_copy(update={"digest": "0" * 64})
    for number, (part, message) in enumerate(
        (
            (absent, "no complete model version"),
            (other, "but 000.* is required"),
        )
    ):
        with pytest.raises(RegistryError, match=message):
            register(task_uri, hybrid_folder(tmp_path / str(number + 10), [versions[0], part]))
    assert len(list_versions(task_uri)[0]) == 2


def test_concurrent_readers_create_one_secret_for_the_draws_of_a_task(bucket: str) -> None:
    with ThreadPoolExecutor(8) as readers:
        secrets = set(readers.map(draw_secret, [f"{bucket}/task"] * 8))
    assert secrets == {draw_secret(f"{bucket}/task")}
    assert len(secrets.pop()) == 32
    assert draw_secret(f"{bucket}/other") != draw_secret(f"{bucket}/task")
