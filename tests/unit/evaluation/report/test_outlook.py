"""Tests of the sentence about what is served and what would change it."""

from dataclasses import replace

import pytest

from tailorbird.evaluation.report.console import power_sentence
from tailorbird.evaluation.report.outlook import outlook_sentence, what_would_change
from tests.unit.evaluation.report.test_html import evidence_for
from tests.unit.evaluation.simulated import Simulation, evidence_of


def test_a_chosen_candidate_needs_no_outlook() -> None:
    assert outlook_sentence(evidence_for("FINE_TUNE")) is None
    assert outlook_sentence(evidence_for("HYBRID")) is None


def test_the_incumbent_serves_as_the_best_baseline_and_rows_would_change_it() -> None:
    sentence = outlook_sentence(evidence_for("INSUFFICIENT_EVIDENCE"))
    assert sentence is not None
    assert "is served, because it is the best servable baseline on validation" in sentence
    assert " give FINE_TUNE at a true gain of 2 points (expected_gain) with about " in sentence


@pytest.mark.parametrize(
    ("least", "needed", "expected"),
    [
        (12_427, 313, ("about 12,427", "about 313")),
        (None, 313, ("more than 10,000,000", "about 313")),
        (12_427, None, ("about 12,427", "more than 10,000,000")),
    ],
)
def test_rule_8_states_the_rows_for_both_gains(
    least: int | None, needed: int | None, expected: tuple[str, str]
) -> None:
    rows = {"rows_needed": needed, "rows_needed_for_minimum_gain": least}
    verdict = evidence_for("INSUFFICIENT_EVIDENCE").verdict.model_copy(update=rows)
    assert what_would_change(verdict) == (
        f"80% of tests detect a true gain of 1 point (minimum_gain) with {expected[0]} test rows, and give FINE_TUNE "
        f"at a true gain of 2 points (expected_gain) with {expected[1]} test rows; this test has {verdict.n:,}."
    )
    assert f"one of 1 point (minimum_gain) on {expected[0]} test rows" in power_sentence(verdict)


def test_a_champion_serves_as_the_champion() -> None:
    evidence = evidence_for("STAY").model_copy(update={"champion": "s3://models/task/versions/probe-1"})
    sentence = outlook_sentence(evidence)
    assert sentence is not None
    assert "because it is the champion" in sentence
    assert sentence.endswith("A candidate that is proven better, with a gain of 1 point or more, would replace it.")
    as_champion = tuple(
        replace(score, kind="champion") if score.role == "incumbent" else score for score in evidence.scores
    )
    zero_shot = tuple(replace(score, kind="probe") if score.kind == "zero_shot" else score for score in as_champion)
    sentence = outlook_sentence(evidence.model_copy(update={"scores": zero_shot}))
    assert sentence is not None
    assert "pretrained model alone" not in sentence  # the champion is a probe itself


def test_a_proven_baseline_is_compared_with_the_pretrained_model_alone() -> None:
    sentence = outlook_sentence(evidence_of(Simulation(candidate=0.7, contenders={"bag_of_words": 0.85})))
    assert sentence is not None
    assert sentence.startswith("The bag-of-words model is served, because it is proven better than the incumbent")
    better = "it is 13.7 points better than the pretrained model alone (85.5% against 71.8%, probe)"
    assert f" On the test rows, {better}." in sentence
