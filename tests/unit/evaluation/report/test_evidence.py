"""Tests of the evidence: JSON round trip, scores, reliability and evidence files."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.evaluation.gates.calibration import NUM_BINS
from tailorbird.evaluation.report.evidence import Confusion
from tailorbird.evaluation.report.evidence_files import read_evidence, render_files, write_evidence
from tailorbird.evaluation.report.model_scores import confusions, reliability_bins
from tests import build
from tests.unit.evaluation.report.test_html import evidence_for
from tests.unit.evaluation.simulated import Simulation, tables_of


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


def test_a_confusion_counts_the_rows_that_only_one_model_answers_correctly() -> None:
    incumbent = build.predictions("bbba", "abba")
    assert confusions({"candidate": build.predictions("abac", "abba"), "incumbent": incumbent}) == (
        Confusion("a", "b", fixed=1, made=0),
        Confusion("a", "c", fixed=0, made=1),
        Confusion("b", "a", fixed=0, made=1),
    )
    assert confusions({"candidate": incumbent, "incumbent": incumbent}) == ()
