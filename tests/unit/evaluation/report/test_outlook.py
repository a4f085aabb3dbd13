"""Tests of the sentence about what is served and what would change it."""

from dataclasses import replace

from tailorbird.evaluation.report.outlook import outlook_sentence
from tests.unit.evaluation.report.test_html import evidence_for
from tests.unit.evaluation.simulated import Simulation, evidence_of


def test_a_chosen_candidate_needs_no_outlook() -> None:
    assert outlook_sentence(evidence_for("FINE_TUNE")) is None
    assert outlook_sentence(evidence_for("HYBRID")) is None


def test_the_incumbent_serves_as_the_best_baseline_and_rows_would_change_it() -> None:
    sentence = outlook_sentence(evidence_for("INSUFFICIENT_EVIDENCE"))
    assert sentence is not None
    assert "is served, because it is the best servable baseline on validation" in sentence
    assert " test rows, a true gain of 2 points leads to FINE_TUNE in 80% of tests" in sentence


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
