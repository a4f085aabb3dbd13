"""Whom a verdict may promote: confirmatory or answered for, not expired, and the hybrid where it chose that."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tailorbird import storage
from tailorbird.evaluation.report.evidence_files import write_evidence
from tailorbird.registry import champion as champion_module
from tailorbird.registry.champion import Champion, read_champion, set_champion
from tailorbird.registry.versions import ModelVersion, Part, VersionConfig, now, register, write_config
from tailorbird.release.promotion import PromotionRefused, promote, rollback
from tests.integration.small import verdict_of
from tests.integration.storage.test_registry import version_folder

DAY = timedelta(days=1)


@pytest.fixture
def home(bucket: str) -> str:
    return f"{bucket}/task"


@pytest.fixture
def chosen(home: str, tmp_path: Path) -> ModelVersion:
    """The version that the verdicts below choose."""
    return register(home, version_folder(tmp_path / "chosen", value=1))


def concluded(home: str, chosen: ModelVersion, *, confirmatory: bool = True, **more: Any) -> None:
    """Leaves a finished run whose verdict chose the candidate."""
    nobody = {"kind": "full", "uri": f"{home}/versions/none", "digest": "0" * 64}
    found = {
        "run": f"{home}/runs/r",
        "created_at": now(),
        "expires_at": (datetime.now(UTC) + DAY).isoformat(),
        "verdict": verdict_of("FINE_TUNE", rule=3, confirmatory=confirmatory),
        "versions": {"candidate": {"uri": chosen.uri, "digest": chosen.digest}, "incumbent": nobody},
        "champion": None,
    }
    write_evidence(f"{home}/runs/r", {"evidence.json": json.dumps(found | more).encode()})


def test_a_first_look_is_promoted_and_an_override_adds_nothing_to_it(home: str, chosen: ModelVersion) -> None:
    concluded(home, chosen)
    champion = promote(home, override="not needed")
    assert (champion.uri, champion.reason) == (chosen.uri, "FINE_TUNE by rule 3")


def test_a_later_look_promotes_nobody_until_somebody_answers_for_it(home: str, chosen: ModelVersion) -> None:
    concluded(home, chosen, confirmatory=False)
    with pytest.raises(PromotionRefused, match=r"is not confirmatory: .* fresh test rows .* --override REASON"):
        promote(home)
    assert read_champion(home) is None
    champion = promote(home, override="  only the tokenizer was fixed ")
    assert champion.reason == "FINE_TUNE by rule 3; override: only the tokenizer was fixed"
    found = read_champion(home)
    assert found is not None
    assert found[0] == champion
    [kept] = storage.list_files(f"{home}/history")
    assert storage.read_json(kept)["reason"] == champion.reason


@pytest.mark.parametrize("override", ["", "  \n"])
def test_an_override_without_a_reason_is_refused(home: str, chosen: ModelVersion, override: str) -> None:
    concluded(home, chosen, confirmatory=False)
    with pytest.raises(PromotionRefused, match="the override is empty; give the reason"):
        promote(home, override=override)
    assert read_champion(home) is None


@pytest.mark.parametrize("written", [lambda time: time.isoformat(), lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ")])
def test_an_expired_verdict_promotes_nobody_whatever_the_reason(home: str, chosen: ModelVersion, written: Any) -> None:
    concluded(home, chosen, expires_at=written(datetime.now(UTC) - DAY))
    with pytest.raises(PromotionRefused, match=r"expired at 20.*; give fresh test rows"):
        promote(home, override="in a hurry")
    assert read_champion(home) is None
    concluded(home, chosen, expires_at=written(datetime.now(UTC) + DAY))
    assert promote(home).uri == chosen.uri


def test_who_is_champion_already_stays_so_after_the_verdict_expired(home: str, chosen: ModelVersion) -> None:
    concluded(home, chosen)
    champion = promote(home)
    concluded(home, chosen, confirmatory=False, expires_at=(datetime.now(UTC) - DAY).isoformat())
    assert promote(home) == champion


@pytest.mark.parametrize("outcome", [("STAY", 9), ("INSUFFICIENT_EVIDENCE", 8), ("INSUFFICIENT_EVIDENCE", 2)])
def test_a_rung_that_was_ahead_of_the_champion_on_validation_alone_does_not_replace_it(
    home: str, chosen: ModelVersion, tmp_path: Path, outcome: tuple[str, int]
) -> None:
    concluded(home, chosen)
    champion = promote(home)
    rung, tuned = (register(home, version_folder(tmp_path / name, value=2 + len(name))) for name in ("rung", "tuned"))
    told = {
        role: {"uri": one.uri, "digest": one.digest, "kind": "probe"}
        for role, one in (("incumbent", rung), ("candidate", tuned))
    }
    verdict = verdict_of(outcome[0], rule=outcome[1])
    concluded(home, chosen, verdict=verdict, versions=told, champion=champion.uri)
    with pytest.raises(PromotionRefused, match=rf"{chosen.version} serves on: .* on validation alone .* --override"):
        promote(home)
    found = read_champion(home)
    assert found is not None
    assert found[0] == champion
    assert promote(home, override="the probe is what we want").uri == rung.uri


def test_a_rollback_goes_back_promotion_by_promotion_to_the_first_incumbent(home: str, tmp_path: Path) -> None:
    pretrained, first, second = (
        register(home, version_folder(tmp_path / name, value=value))
        for value, name in enumerate(("pretrained", "first", "second"), 1)
    )
    parts = {"kind": "probe", "uri": pretrained.uri, "digest": pretrained.digest}
    concluded(home, first, versions={"candidate": {"uri": first.uri, "digest": first.digest}, "incumbent": parts})
    assert promote(home).before == ()
    concluded(home, second, champion=first.uri, created_at="2099-01-01T00:00:00+00:00", run=f"{home}/runs/r")
    before = champion_module.read_champion(home)
    assert before is not None
    promoted = promote(home)
    with pytest.raises(PromotionRefused, match=rf"nothing is done: {promoted.version} serves by now"):
        rollback(home, reason="found wanting while another took its place", of=before[0])
    assert [former.uri for former in promoted.before] == [first.uri]
    assert (promoted.before[0].pretrained, promoted.pretrained) == (
        Part(uri=pretrained.uri, digest=pretrained.digest),
        None,
    )
    back = rollback(home, reason=" complaints ")
    assert (back.uri, back.run, back.before) == (first.uri, f"{home}/runs/r", ())
    assert back.reason == f"rolled back from {second.version}: complaints"
    with pytest.raises(PromotionRefused, match=r"was rolled back; .* --override REASON"):
        promote(home)  # its verdict still stands, but it must not return by itself
    again = promote(home, override="mended")
    assert (again.uri, again.rolled_back, again.reason) == (second.uri, (), "FINE_TUNE by rule 3; override: mended")
    rollback(home, reason="again")
    concluded(home, first, versions={"candidate": {"uri": first.uri, "digest": first.digest}, "incumbent": parts})
    back = rollback(home, reason="and again")
    assert (back.uri, back.run, back.pretrained) == (pretrained.uri, "", promoted.before[0].pretrained)
    assert back.rolled_back == (second.digest, first.digest)
    with pytest.raises(PromotionRefused, match="nothing served before"):
        rollback(home, reason="further")
    assert promote(home, override="the complaint was wrong").uri == first.uri  # it was compared with who serves now
    assert len(storage.list_files(f"{home}/history")) == 7


def test_a_rollback_takes_a_reason_a_champion_and_an_unchanged_version(
    home: str, chosen: ModelVersion, tmp_path: Path
) -> None:
    with pytest.raises(PromotionRefused, match="has no champion"):
        rollback(home, reason="why")
    other = register(home, version_folder(tmp_path / "other", value=2))
    wrong = {"kind": "full", "uri": other.uri, "digest": "0" * 64}
    concluded(home, chosen, versions={"candidate": {"uri": chosen.uri, "digest": chosen.digest}, "incumbent": wrong})
    champion = promote(home)
    with pytest.raises(PromotionRefused, match="the reason is empty"):
        rollback(home, reason=" ")
    with pytest.raises(PromotionRefused, match="is not what served: its digest changed"):
        rollback(home, reason="why")
    found = read_champion(home)
    assert found is not None
    assert found[0] == champion


def test_a_hybrid_that_a_verdict_chose_is_promoted(home: str, chosen: ModelVersion) -> None:
    other = {"kind": "full", "uri": f"{home}/versions/other", "digest": "0" * 64}
    concluded(
        home,
        chosen,
        verdict=verdict_of("HYBRID", rule=4),
        versions={
            "candidate": other,
            "incumbent": other,
            "hybrid": {"uri": chosen.uri, "digest": chosen.digest},
        },
    )
    champion = promote(home)
    assert (champion.uri, champion.reason) == (chosen.uri, "HYBRID by rule 4")


def exported_from(version: ModelVersion, folder: Path, *, home: str) -> ModelVersion:
    """The version as if for another engine; the file that the engine would run is not looked at here."""
    version_folder(folder, value=1)
    fields = version.model_dump(include=set(VersionConfig.model_fields))
    fields |= {"engine": "openvino", "exported_from": {"uri": version.uri, "digest": version.digest}}
    write_config(folder, VersionConfig(**fields))
    return register(home, folder)


def promoted(home: str, chosen: ModelVersion, folder: Path) -> tuple[tuple[Champion, str], ModelVersion]:
    """The chosen version as champion, with the ETag to change it by, and the same for another engine."""
    concluded(home, chosen)
    promote(home)
    found = read_champion(home)
    assert found is not None
    return found, exported_from(chosen, folder / "exported", home=home)


def test_weights_that_were_rolled_back_do_not_return_by_another_engine(
    home: str, chosen: ModelVersion, tmp_path: Path
) -> None:
    found, faster = promoted(home, chosen, tmp_path)
    before = (champion_module.Former(uri=found[0].uri, digest=found[0].digest, run=found[0].run),)
    set_champion(home, faster, etag=found[1], reason="faster", run=found[0].run, before=before)
    assert promote(home).uri == faster.uri  # these weights serve, and their engine stays

    back = rollback(home, reason="wrong answers by that engine")
    assert (back.uri, back.rolled_back) == (chosen.uri, (faster.digest,))  # the engine is left, not the weights
    assert promote(home) == back
    later = read_champion(home)
    assert later is not None
    other = register(home, version_folder(tmp_path / "other", value=2))
    former = champion_module.Former(uri=other.uri, digest=other.digest, run="")
    set_champion(home, faster, etag=later[1], reason="faster", run=back.run, before=(former,))
    back = rollback(home, reason="wrong answers")
    assert (back.uri, back.rolled_back) == (other.uri, (faster.digest, chosen.digest))
    concluded(home, chosen, champion=other.uri)
    with pytest.raises(PromotionRefused, match="was rolled back"):
        promote(home)


def test_a_champion_of_another_engine_that_a_later_run_keeps_can_go_back_to_torch(
    home: str, chosen: ModelVersion, tmp_path: Path
) -> None:
    found, faster = promoted(home, chosen, tmp_path)
    set_champion(home, faster, etag=found[1], reason="faster", run=found[0].run)
    told = {"uri": faster.uri, "digest": faster.digest, "kind": "probe"}
    nobody = {"uri": f"{home}/versions/none", "digest": "0" * 64}
    write_evidence(
        f"{home}/runs/later",
        {
            "evidence.json": json.dumps(
                {
                    "run": f"{home}/runs/later",
                    "created_at": "2099-01-01T00:00:00+00:00",
                    "expires_at": "2099-02-01T00:00:00+00:00",
                    "verdict": verdict_of("STAY", rule=9),
                    "versions": {"incumbent": told, "candidate": nobody},
                    "champion": faster.uri,
                }
            ).encode()
        },
    )
    assert promote(home).uri == faster.uri
    again = promote(home, engine="torch")
    assert (again.uri, again.reason) == (chosen.uri, f"another engine than {faster.version} had")
    assert again.run == found[0].run
