"""Tests of the evidence: JSON round trip, scores, reliability and evidence files."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailorbird.evaluation.gates.calibration import NUM_BINS
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import Confusion, Evidence
from tailorbird.evaluation.report.evidence_files import read_evidence, render_files, write_evidence
from tailorbird.evaluation.report.model_scores import confusions, reliability_bins
from tests.unit.evaluation.report.test_html import SIMULATIONS, evidence_for
from tests.unit.evaluation.simulated import Simulation, tables_of


def test_evidence_survives_a_json_round_trip() -> None:
    for outcome in SIMULATIONS:
        evidence = evidence_for(outcome)
        assert Evidence.model_validate_json(evidence.model_dump_json()) == evidence


def test_a_newer_format_and_unknown_fields_are_refused() -> None:
    value = evidence_for().model_dump(mode="json")
    with pytest.raises(ValueError, match="this Evidence has format 2"):
        Evidence.model_validate(value | {"format": 2})
    with pytest.raises(ValueError, match=r"data\.surprise"):
        Evidence.model_validate(value | {"data": value["data"] | {"surprise": 1}})


def test_only_models_that_predicted_the_test_rows_have_test_scores() -> None:
    evidence = evidence_for()
    scores = {score.kind: score for score in evidence.scores}
    verdict = evidence.verdict
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
    right = table.scores
    bin_of_row = np.digitize(table.calibrated, np.linspace(0, 1, NUM_BINS + 1)[1:-1])
    expected = np.abs(np.bincount(bin_of_row, weights=table.calibrated - right)).sum() / len(table)
    assert gap == pytest.approx(expected, abs=1e-12)


def test_changed_evidence_is_refused(tmp_path: Path) -> None:
    evidence = evidence_for()
    write_evidence(tmp_path.as_uri(), render_files(evidence, role="candidate"))
    assert read_evidence(tmp_path.as_uri()) == evidence
    with (tmp_path / "evidence.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ValueError, match=r"evidence\.json was changed"):
        read_evidence(tmp_path.as_uri())


LABELS = ("a", "b", "b", "a")


def table_of(outputs: str) -> Predictions:
    scores = np.array(
        [output == label for output, label in zip(outputs, LABELS, strict=True)], dtype=np.float64
    )
    ids = tuple(map(str, range(len(LABELS))))
    measures = {"token_f1": scores / 2}
    return Predictions(
        "probe", ids, LABELS, tuple(outputs), scores, scores, scores, measures=measures
    )


TABLES = {"candidate": table_of("abaa"), "incumbent": table_of("bbbb")}


def without_measures(outputs: str) -> Predictions:
    return replace(table_of(outputs), measures={})


def test_a_confusion_counts_the_rows_that_only_one_model_answers_correctly() -> None:
    tables = {
        "candidate": without_measures("abac"),
        "incumbent": without_measures("bbba"),
    }  # the labels are a, b, b, a
    assert confusions(tables) == (
        Confusion("a", "b", fixed=1, made=0),
        Confusion("a", "c", fixed=0, made=1),
        Confusion("b", "a", fixed=0, made=1),
    )
    same = {role: without_measures("bbba") for role in tables}
    assert confusions(same) == ()


def test_chat_tasks_have_no_confusions() -> None:
    assert confusions(TABLES) is None
