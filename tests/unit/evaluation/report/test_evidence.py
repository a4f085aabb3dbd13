"""Evidence is assembled from what the stages left, as plain JSON that page, card and terminal can show."""

import json

import numpy as np
import pytest

from tailorbird.config.recipe import Recipe
from tailorbird.evaluation.gates.calibration import ece
from tailorbird.evaluation.report.console import verdict_lines
from tailorbird.evaluation.report.evidence import reliability_bins, render_files, role_at
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import Outcome, winner
from tailorbird.evaluation.verdict.types import Verdict
from tests.unit.evaluation.report.test_html import SIMULATIONS, some_evidence
from tests.unit.evaluation.simulated import Simulation, question_of, recipe_of, tables_of


def test_it_is_plain_json_that_gives_verdict_question_and_recipe_back() -> None:
    evidence = some_evidence()
    assert Verdict.from_dict(evidence["verdict"]).to_dict() == evidence["verdict"]
    assert TestProtocol.from_dict(evidence["question"]) == question_of(SIMULATIONS["FINE_TUNE"])
    assert Recipe.model_validate(evidence["recipe"]) == recipe_of(SIMULATIONS["FINE_TUNE"])


def test_the_ladder_names_who_is_who_and_test_figures_stand_only_where_test_was_looked_at() -> None:
    evidence = some_evidence()
    ladder, verdict = {row["kind"]: row for row in evidence["ladder"]}, evidence["verdict"]
    assert {kind: (row["role"], row["test"]) for kind, row in ladder.items()} == {
        "majority": (None, None), "zero_shot": (None, None), "centroid": (None, None),
        "probe": ("incumbent", verdict["incumbent_score"]), "tf_idf": ("reference", verdict["reference_score"]),
        "full": ("candidate", verdict["candidate_score"]),
    }  # fmt: skip
    assert ladder["full"]["validation"] == 0.744
    for row in ladder.values():
        low, high = row["interval"]
        assert low <= row["validation"] <= high


def test_each_seed_is_told_and_the_best_on_validation_speaks_for_training() -> None:
    evidence = some_evidence()
    assert evidence["seeds"] == [
        {"seed": 5, "validation": 0.741}, {"seed": 6, "validation": 0.736}, {"seed": 7, "validation": 0.744},
    ]  # fmt: skip
    assert evidence["training"]["selected"] == {"method": "full", "learning_rate": 1e-4}


def test_a_trials_kind_is_the_method_it_was_given_or_the_recipes() -> None:
    kinds = {row["trial"]: (row["kind"], row["epochs"]) for row in some_evidence()["sweep"]}
    assert kinds == {"1": ("full", 3), "2": ("lora", 3), "probe": ("probe", 0)}


def test_reliability_is_what_the_calibration_error_is_made_of() -> None:
    table = tables_of(Simulation())["candidate"]
    bins = reliability_bins(table)
    assert sum(row["n"] for row in bins) == len(table)
    gap = sum(row["n"] * abs(row["confidence"] - row["accuracy"]) for row in bins) / len(table)
    right = np.array([a == b for a, b in zip(table.outputs, table.labels, strict=True)], dtype=np.float64)
    assert gap == pytest.approx(ece(right, table.calibrated), abs=1e-12)


@pytest.mark.parametrize(
    ("outcome", "role"),
    [("FINE_TUNE", "candidate"), ("STAY", "incumbent"), ("HYBRID", "hybrid"), ("INSUFFICIENT_EVIDENCE", "incumbent")],
)
def test_the_files_that_leave_with_a_version_all_say_the_outcome(outcome: str, role: str) -> None:
    evidence = some_evidence(outcome)
    assert winner(Outcome(evidence["verdict"]["outcome"])) == role
    assert role_at(evidence["run"], evidence=evidence) == role
    assert role_at(evidence["versions"]["incumbent"]["uri"], evidence=evidence) == "incumbent"
    written = render_files(evidence, role=role)
    assert set(written) == {"evidence.json", "report.html", "MODEL_CARD.md"}
    assert json.loads(written["evidence.json"]) == evidence
    for name in ("report.html", "MODEL_CARD.md"):
        assert outcome.encode() in written[name]
    assert any(outcome in line for line in verdict_lines(evidence))
