"""Promotion without a service, with the champion kept in memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tailorbird.config.serving import ChallengerConfig, ServingConfig
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.evidence_files import write_evidence
from tailorbird.registry.champion import Champion, ChangeReason, ParityResult, PreviousChampion
from tailorbird.registry.versions import (
    ModelVersion,
    RegistryError,
    register,
    write_config,
)
from tailorbird.release import promotion, serving
from tailorbird.release.promotion import promote_version
from tailorbird.release.runs import PromotionRefused
from tests.build import version_config
from tests.finished_runs import candidate_record, verdict_of, write_finished_run


class Task:
    """A task in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uri = (folder / "task").as_uri()
        self.champion: Champion | None = None

    def register(self, name: str, *, kind: Any = "full", **changes: Any) -> ModelVersion:
        folder = self.folder / name
        folder.mkdir()
        for file in ("head.safetensors", "encoder.safetensors"):
            (folder / file).write_text(name)
        write_config(folder, version_config(kind=kind, classes=("a", "b"), **changes))
        return register(self.uri, folder)

    def promote(
        self, candidate: ModelVersion, *, incumbent: ModelVersion, **changes: Any
    ) -> Champion:
        """Promote the candidate by the verdict of a run that compared it with the incumbent."""
        changes = {"champion": self.champion.uri if self.champion else None} | changes
        self.finish(candidate.version, candidate=candidate, incumbent=incumbent, **changes)
        return promote_version(self.uri, version=candidate.uri)

    def finish(
        self, name: str, *, candidate: ModelVersion, incumbent: ModelVersion, **changes: Any
    ) -> Evidence:
        """Write the evidence of a run that compared these versions."""
        versions = {"candidate": candidate, "incumbent": incumbent} | changes.pop("others", {})
        records = {role: candidate_record(version) for role, version in versions.items()}
        return write_finished_run(f"{self.uri}/runs/{name}", versions=records, **changes)

    def damage(self, version: ModelVersion, name: str) -> None:
        """Change or add a file of a version."""
        (self.folder / "task" / "versions" / version.version / name).write_text("other content")


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    """Return a task that is not served."""
    task = Task(tmp_path)

    def write(_task_uri: str, champion: Champion, *, etag: str | None) -> None:
        assert etag == ("etag" if task.champion else None)
        task.champion = champion

    @contextmanager
    def not_served(_task_uri: str, **_options: object) -> Iterator[None]:
        yield None

    monkeypatch.setattr(
        promotion, "read_champion", lambda _: (task.champion, "etag") if task.champion else None
    )
    monkeypatch.setattr(promotion, "write_champion", write)
    monkeypatch.setattr(promotion, "staged", not_served)
    monkeypatch.setattr(promotion, "switch_service", lambda *_args, **_options: None)
    return task


def test_a_baseline_is_inherited_with_the_same_base_model_and_code_unless_it_is_damaged(
    task: Task,
) -> None:
    baseline = task.register("baseline", kind="probe")
    first, second, third = (task.register(name) for name in "123")
    assert task.promote(first, incumbent=baseline).baseline == baseline.pinned
    for changed in ({"base_model": "s3://models/_base/two"}, {"code": "s3://models/two.zip"}):
        other = task.register(next(iter(changed)), **changed)
        before = task.champion
        assert task.promote(other, incumbent=first).baseline is None
        task.champion = before
    assert task.promote(second, incumbent=first).baseline == baseline.pinned
    (task.folder / "task" / "versions" / baseline.version / "manifest.json").unlink()
    assert task.promote(third, incumbent=second).baseline is None


def test_a_version_is_promoted_by_its_name(task: Task) -> None:
    baseline = task.register("baseline", kind="probe")
    first = task.register("1")
    promoted = task.promote(first, incumbent=baseline)
    assert promote_version(task.uri, version=first.version).uri == promoted.uri == first.uri
    with pytest.raises(PromotionRefused, match=r"no verdict chose .*/versions/full-none"):
        promote_version(task.uri, version="full-none")


def champion_of(version: ModelVersion, **fields: Any) -> Champion:
    reason = ChangeReason(change="promotion", text="a test")
    return Champion(
        version=version.version,
        uri=version.uri,
        digest=version.digest,
        run="",
        reason=reason,
        since="2026",
        **fields,
    )


@pytest.mark.parametrize("name", ["config.json", "head.safetensors", "added.json"])
def test_a_version_with_a_changed_or_added_file_is_neither_promoted_nor_restored(
    task: Task, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    baseline = task.register("baseline", kind="probe")
    first = task.register("1")
    change = Mock()
    for stage in ("staged", "switch_service"):
        monkeypatch.setattr(promotion, stage, change)
    for version in (first, baseline):
        task.damage(version, name)
    with pytest.raises(RegistryError, match=f"{name} (was changed|is not in the manifest)"):
        task.promote(first, incumbent=baseline)
    previous = PreviousChampion(uri=baseline.uri, digest=baseline.digest, run="")
    task.champion = before = champion_of(first, previous=(previous,))
    with pytest.raises(RegistryError, match=f"{name} (was changed|is not in the manifest)"):
        promotion.roll_back(task.uri, reason="worse")
    assert task.champion == before
    change.assert_not_called()


@pytest.mark.parametrize("damaged", ["champion", "challenger", "baseline"])
def test_a_deploy_with_a_changed_version_fails_before_it_changes_anything(
    task: Task, monkeypatch: pytest.MonkeyPatch, damaged: str
) -> None:
    served = {role: task.register(role) for role in ("champion", "challenger")}
    served["baseline"] = task.register("baseline", kind="probe")
    champion = champion_of(
        served["champion"],
        baseline=served["baseline"].pinned,
        parity=ParityResult(rows=1, matching=1, at="2026"),
    )
    deploy = Mock(return_value="http://127.0.0.1")
    monkeypatch.setattr(serving, "read_champion", lambda _: (champion, "etag"))
    monkeypatch.setattr(serving, "deploy", deploy)
    config = ServingConfig(
        request_log="s3://logs/requests",
        challenger=ChallengerConfig(version=served["challenger"].version),
    )
    serving.serve_champion(config, task_uri=task.uri)
    task.damage(served[damaged], "head.safetensors")
    with pytest.raises(RegistryError, match=r"head\.safetensors"):
        serving.serve_champion(config, task_uri=task.uri)
    deploy.assert_called_once()


def test_a_verdict_that_compared_with_another_champion_is_refused(task: Task) -> None:
    baseline = task.register("baseline", kind="probe")
    first = task.register("1")
    second = task.register("2")
    with pytest.raises(PromotionRefused, match="not the champion"):  # of the run
        task.promote(second, incumbent=baseline, champion=first.uri)
    task.promote(first, incumbent=baseline)
    before = task.champion
    with pytest.raises(PromotionRefused, match="no champion"):
        task.promote(second, incumbent=baseline, champion=None)
    with pytest.raises(PromotionRefused, match=baseline.uri):
        task.promote(second, incumbent=baseline, champion=baseline.uri)
    assert task.champion == before
    # The incumbent of a run without a champion is the champion now.
    assert task.promote(second, incumbent=first, champion=None).uri == second.uri


def test_the_incumbent_of_a_first_run_becomes_the_champion_because_it_stays(task: Task) -> None:
    incumbent = task.register("1", kind="probe")
    stay = verdict_of("STAY")
    task.finish("r", candidate=task.register("2"), incumbent=incumbent, verdict=stay)
    assert promote_version(task.uri).uri == incumbent.uri


def test_a_baseline_that_is_proven_better_becomes_the_champion_and_its_own_pretrained_version(
    task: Task,
) -> None:
    incumbent = task.register("1")
    candidate = task.register("2")
    baseline = task.register("3", kind="probe")
    task.finish(
        "r",
        candidate=candidate,
        incumbent=incumbent,
        others={"probe": baseline},
        verdict=verdict_of("STAY", selected="probe"),
    )
    champion = promote_version(task.uri)
    assert (champion.uri, champion.baseline) == (baseline.uri, baseline.pinned)
    with pytest.raises(PromotionRefused, match="no verdict chose"):
        promote_version(task.uri, version=candidate.uri)


def test_an_older_run_with_evidence_from_another_version_of_tailorbird_does_not_prevent_a_promotion(
    task: Task,
) -> None:
    first, second = task.register("1"), task.register("2")
    created_at = "2020-01-01T00:00:00+00:00"
    old = task.finish("old", candidate=second, incumbent=first, created_at=created_at)
    content = old.model_dump_json().replace('{"format":1,', '{"format":1,"earlier_field":1,', 1)
    write_evidence(old.run, {"evidence.json": content.encode()})
    with pytest.raises(PromotionRefused, match="another version of Tailorbird"):
        promote_version(task.uri)
    new = task.finish("new", candidate=second, incumbent=first)
    evidence = task.folder / "task" / "runs" / "new" / "evidence.json"
    evidence.write_text("{")
    with pytest.raises(PromotionRefused, match=r"new/evidence\.json was changed"):
        promote_version(task.uri)
    evidence.write_text(new.model_dump_json())
    assert promote_version(task.uri).uri == second.uri


def test_a_champion_that_was_chosen_for_its_cost_has_the_last_one_that_was_proven_better_as_its_anchor(
    task: Task,
) -> None:
    versions = [task.register(name) for name in "1234"]
    for_cost = verdict_of("FINE_TUNE").model_copy(update={"replaces_for_cost": True})
    assert task.promote(versions[1], incumbent=versions[0]).anchor is None
    for number in (2, 3):
        incumbent = versions[number - 1]
        champion = task.promote(versions[number], incumbent=incumbent, verdict=for_cost)
        assert champion.anchor == versions[1].pinned
    assert promotion.roll_back(task.uri, reason="worse").anchor == versions[1].pinned
    assert promotion.roll_back(task.uri, reason="worse").anchor is None
