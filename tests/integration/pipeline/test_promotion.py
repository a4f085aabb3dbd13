"""Promotion requires a verdict that chose the version and has not expired; a rolled-back version an
override."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tailorbird import storage
from tailorbird.evaluation.report.evidence import CandidateRecord
from tailorbird.registry.champion import read_champion
from tailorbird.registry.versions import (
    ModelVersion,
    PinnedVersion,
    register,
)
from tailorbird.release.promotion import promote_version, roll_back
from tailorbird.release.runs import PromotionRefused
from tests.finished_runs import candidate_record, verdict_of, write_finished_run
from tests.integration.storage.test_registry import version_folder

DAY = timedelta(days=1)


@pytest.fixture
def task_uri(bucket: str) -> str:
    return f"{bucket}/task"


@pytest.fixture
def chosen(task_uri: str, tmp_path: Path) -> ModelVersion:
    """The version that the verdicts below choose."""
    return register(task_uri, version_folder(tmp_path / "chosen", value=1))


def write_concluded_run(task_uri: str, chosen: ModelVersion, **more: Any) -> None:
    """Write a finished run whose verdict chose the candidate."""
    versions = more.pop(
        "versions", {"candidate": candidate_record(chosen), "incumbent": unregistered(task_uri)}
    )
    verdict = verdict_of("FINE_TUNE")
    changes = {"expires_at": (datetime.now(UTC) + DAY).isoformat(), "verdict": verdict} | more
    write_finished_run(f"{task_uri}/runs/r", versions=versions, **changes)


def unregistered(task_uri: str) -> CandidateRecord:
    return CandidateRecord("full", f"{task_uri}/versions/none", "0" * 64)


def test_a_promotion_needs_a_valid_verdict_and_an_override_a_reason(
    task_uri: str, chosen: ModelVersion
) -> None:
    yesterday = datetime.now(UTC) - DAY
    for expired in (yesterday.isoformat(), yesterday.strftime("%Y-%m-%dT%H:%M:%SZ")):
        write_concluded_run(task_uri, chosen, expires_at=expired)
        with pytest.raises(PromotionRefused, match=r"expired at 20.*; run the recipe again"):
            promote_version(task_uri, override="in a hurry")
    write_concluded_run(task_uri, chosen)
    for empty in ("", "  \n"):
        with pytest.raises(PromotionRefused, match="--override is empty; give a reason"):
            promote_version(task_uri, override=empty)
    assert read_champion(task_uri) is None
    champion = promote_version(task_uri, override="not needed")
    assert champion.uri == chosen.uri
    assert champion.reason.sentence() == "FINE_TUNE: candidate dominates the incumbent"
    write_concluded_run(task_uri, chosen, expires_at=yesterday.isoformat())
    assert promote_version(task_uri) == champion  # it remains the champion


def test_rollbacks_return_through_each_promotion_to_the_first_incumbent(
    task_uri: str, tmp_path: Path
) -> None:
    pretrained, first, second = (
        register(task_uri, version_folder(tmp_path / name, value=value))
        for value, name in enumerate(("baseline", "first", "second"), 1)
    )
    fine_tuned = [
        CandidateRecord("full", version.uri, version.digest) for version in (first, second)
    ]
    versions = {"candidate": fine_tuned[0], "incumbent": candidate_record(pretrained)}
    write_concluded_run(task_uri, first, versions=versions)
    assert promote_version(task_uri).previous == ()
    later = {"candidate": fine_tuned[1], "incumbent": fine_tuned[0]}
    write_concluded_run(
        task_uri, second, versions=later, champion=first.uri, created_at="2099-01-01T00:00:00+00:00"
    )
    before = read_champion(task_uri)
    assert before is not None
    promoted = promote_version(task_uri)
    with pytest.raises(
        PromotionRefused,
        match=rf"not rolled back: .* is no longer the champion; the champion is {promoted.version}",
    ):
        roll_back(task_uri, reason="replaced in the meantime", of=before[0])
    assert [previous.uri for previous in promoted.previous] == [first.uri]
    pinned = PinnedVersion(uri=pretrained.uri, digest=pretrained.digest)
    assert (promoted.previous[0].baseline, promoted.baseline) == (pinned, pinned)
    back = roll_back(task_uri, reason=" complaints ")
    assert (back.uri, back.run, back.previous) == (first.uri, f"{task_uri}/runs/r", ())
    assert back.reason.sentence() == f"rolled back from {second.version}: complaints"
    with pytest.raises(PromotionRefused, match=r"was rolled back; .* --override REASON"):
        promote_version(task_uri)  # its verdict is still valid, but a promotion needs an override
    again = promote_version(task_uri, override="mended")
    assert (again.uri, again.rolled_back, again.reason.sentence()) == (
        second.uri,
        (),
        "FINE_TUNE: candidate dominates the incumbent; override: mended",
    )
    roll_back(task_uri, reason="again")
    write_concluded_run(task_uri, first, versions=versions)
    back = roll_back(task_uri, reason="and again")
    assert (back.uri, back.run, back.baseline) == (
        pretrained.uri,
        "",
        promoted.previous[0].baseline,
    )
    assert back.rolled_back == (second.digest, first.digest)
    with pytest.raises(PromotionRefused, match="there was no champion before"):
        roll_back(task_uri, reason="further")
    assert (
        promote_version(task_uri, override="the complaint was wrong").uri == first.uri
    )  # its verdict compared it with the present champion
    assert len(storage.list_files(f"{task_uri}/history")) == 7


def test_a_rollback_requires_a_reason_a_champion_and_an_unchanged_version(
    task_uri: str, chosen: ModelVersion, tmp_path: Path
) -> None:
    with pytest.raises(PromotionRefused, match="has no champion"):
        roll_back(task_uri, reason="why")
    other = register(task_uri, version_folder(tmp_path / "other", value=2))
    wrong = CandidateRecord("full", other.uri, "0" * 64)
    versions = {"candidate": candidate_record(chosen), "incumbent": wrong}
    write_concluded_run(task_uri, chosen, versions=versions)
    champion = promote_version(task_uri)
    with pytest.raises(PromotionRefused, match="--reason is empty"):
        roll_back(task_uri, reason=" ")
    with pytest.raises(
        PromotionRefused, match="was changed after it was the champion: its digest differs"
    ):
        roll_back(task_uri, reason="why")
    stored = read_champion(task_uri)
    assert stored is not None
    assert stored[0] == champion
