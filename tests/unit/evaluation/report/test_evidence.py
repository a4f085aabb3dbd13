"""Tests of the evidence: JSON round trip, scores, reliability and evidence files."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.evaluation.gates.calibration import bins_of, ece
from tailorbird.evaluation.report.console import verdict_lines, verdict_panel
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.evaluation.report.evidence_files import read_evidence, render_files, write_evidence
from tailorbird.evaluation.report.model_scores import reliability_bins
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for
from tests.unit.evaluation.simulated import Simulation, protocol_of, recipe_of, tables_of


def test_evidence_survives_a_json_round_trip() -> None:
    for outcome in SIMULATIONS:
        evidence = evidence_for(outcome)
        assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence
        assert evidence.model_dump(mode="json")["format"] == 1


def test_a_newer_format_and_unknown_fields_are_refused() -> None:
    value = evidence_for().model_dump(mode="json")
    with pytest.raises(ValueError, match="this Evidence has format 2"):
        Evidence.model_validate(value | {"format": 2})
    with pytest.raises(ValueError, match=r"data\.surprise"):
        Evidence.model_validate(value | {"data": value["data"] | {"surprise": 1}})


def test_evidence_contains_recipe_and_protocol_of_the_run() -> None:
    evidence, simulation = evidence_for(), SIMULATIONS["FINE_TUNE"]
    assert (evidence.protocol, evidence.recipe) == (protocol_of(simulation), recipe_of(simulation))


def test_only_models_that_predicted_the_test_rows_have_test_scores() -> None:
    evidence = evidence_for()
    scores, verdict = {score.kind: score for score in evidence.scores}, evidence.verdict
    assert {kind: (score.role, score.test) for kind, score in scores.items()} == {
        "majority": (None, None), "zero_shot": (None, None),
        "bag_of_words": ("contender", verdict.model("bag_of_words").score),
        "centroid": ("contender", verdict.model("centroid").score),
        "probe": ("incumbent", verdict.incumbent.score),
        "full": ("candidate", verdict.model("candidate").score),
    }  # fmt: skip
    assert scores["full"].validation == evidence.family.models[1].validation
    for score in scores.values():
        assert score.interval is not None
        low, high = score.interval
        assert low <= score.validation <= high


def test_the_mean_gap_of_the_reliability_bins_is_the_ece() -> None:
    table = tables_of(Simulation())["candidate"]
    bins = reliability_bins(table)
    assert sum(row.n for row in bins) == len(table)
    gap = sum(row.n * abs(row.confidence - row.accuracy) for row in bins) / len(table)
    right = np.array(
        [a == b for a, b in zip(table.outputs, table.labels, strict=True)], dtype=np.float64
    )
    assert gap == pytest.approx(ece(table.calibrated - right, bins_of(table.calibrated)), abs=1e-12)


@pytest.mark.parametrize(
    ("outcome", "role"),
    [
        ("FINE_TUNE", "candidate"),
        ("STAY", "incumbent"),
        ("HYBRID", "hybrid"),
        ("INSUFFICIENT_EVIDENCE", "incumbent"),
    ],
)
def test_every_evidence_file_states_the_outcome(outcome: str, role: str) -> None:
    evidence = evidence_for(outcome)
    assert evidence.verdict.selected == role
    assert evidence.role_of(evidence.run) == role
    assert evidence.winner is evidence.versions[role]
    assert evidence.role_of(evidence.versions["incumbent"].uri) == "incumbent"
    files = render_files(evidence, role=role)
    assert set(files) == {"evidence.json", "report.html", "MODEL_CARD.md"}
    assert Evidence.model_validate_json(files["evidence.json"]) == evidence
    for name in ("report.html", "MODEL_CARD.md"):
        assert outcome.encode() in files[name]
    assert any(outcome in line for line in verdict_lines(evidence))


def test_a_run_ends_with_the_verdict_and_what_is_served_next() -> None:
    evidence = evidence_for("FINE_TUNE")
    sentence, numbers, served = verdict_panel(evidence)
    assert (sentence, numbers) == (evidence.verdict.sentence(), evidence.verdict.numbers())
    version = evidence.winner.uri.rpartition("/")[2]
    assert served == f"served next: {version} (fine-tuned model), once promoted"
    assert (
        verdict_panel(evidence, promoted=True)[2]
        == f"served next: {version} (fine-tuned model), now the champion"
    )


def test_a_champion_that_wins_is_served_as_before() -> None:
    evidence = evidence_for("STAY")
    evidence = evidence.model_copy(update={"champion": evidence.winner.uri})
    assert verdict_panel(evidence)[2].startswith("served next: the champion ")
    assert verdict_panel(evidence)[2].endswith(", as before")


def test_changed_evidence_is_refused(tmp_path: Path) -> None:
    evidence = evidence_for()
    write_evidence(tmp_path.as_uri(), render_files(evidence, role="candidate"))
    assert read_evidence(tmp_path.as_uri()) == evidence
    with (tmp_path / "evidence.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=r"evidence\.json was changed"):
        read_evidence(tmp_path.as_uri())
