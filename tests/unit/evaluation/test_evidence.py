"""Evidence is assembled from what the stages left, as plain JSON that page, card and terminal can show."""

import json
from typing import Any

import numpy as np

from evaluation.evidence import assemble, files
from evaluation.predictions import Predictions
from evaluation.report import verdict_lines
from evaluation.verdict import Question, Verdict, decide
from recipes.schema import Recipe

QUESTION = Question("accuracy", 0.01, 0.02, 0.05, "ab" * 32, 100)
RECIPE = Recipe.model_validate(
    {
        "name": "toy",
        "base_model": "pypi://some-model",
        "data": {"train": "s3://lake/toy"},
        "training": {"seed": 5},
        "registry": "s3://models",
    }
)


def verdict() -> Verdict:
    def predictions(model: str, right: int) -> Predictions:
        scores = np.arange(100) < right
        outputs = tuple("a" if hit else "b" for hit in scores)
        ids = tuple(map(str, range(100)))
        return Predictions(
            model, ids, ("a",) * 100, outputs, scores.astype(float), np.full(100, 0.5), np.full(100, 0.5)
        )

    return decide(
        incumbent=predictions("probe", 60),
        candidate=predictions("full", 90),
        reference=predictions("tf_idf", 55),
        question=QUESTION,
        leaks=(),
        test_sha256="ab" * 32,
    )


def rung(kind: str, validation: float, *, servable: bool = True) -> dict[str, Any]:
    return {"kind": kind, "validation": validation, "servable": servable, "note": "", "uri": None}


def trained(score: float) -> dict[str, Any]:
    return {
        "weights": "s3://models/toy/w", "score": score, "epochs": 3, "rows_per_second": 100.0, "padding_share": 0.1,
        "step_seconds": 9.0,
    }  # fmt: skip


def trial(name: str, score: float, *, config: dict[str, Any], num_epochs: int, status: str) -> dict[str, Any]:
    return {
        "trial": name, "config": config, "score": score, "scores": [score] * num_epochs, "seconds": 1.0 * num_epochs,
        "status": status,
    }  # fmt: skip


def some_evidence() -> dict[str, Any]:
    return assemble(
        RECIPE,
        run="s3://models/toy/runs/1",
        question=QUESTION,
        verdict=verdict(),
        parts={
            "rungs": [
                rung("majority", 0.1, servable=False),
                rung("zero_shot", 0.3),
                rung("probe", 0.6),
                rung("tf_idf", 0.7, servable=False),
            ],
            "sweep": {
                "rows": [
                    trial("one", 0.8, config={"method": "lora"}, num_epochs=3, status="completed"),
                    trial("two", 0.5, config={}, num_epochs=2, status="stopped: behind the other trials"),
                    trial("probe", 0.6, config={}, num_epochs=0, status="pretrained"),
                ],
                "selected": {"method": "lora"},
            },
            "seeds": [trained(0.8), trained(0.85), trained(0.7)],
            "data": {"num_train": 500, "num_validation": 50, "num_test": 100, "leaks": []},
            "versions": {
                "incumbent": {"kind": "probe", "uri": "s3://models/toy/versions/probe-1", "digest": "cd" * 32},
                "candidate": {"kind": "lora", "uri": "s3://models/toy/versions/lora-1", "digest": "ef" * 32},
            },
            "champion": None,
            "code": {"sha256": "00" * 32, "uri": "s3://models/toy/code/00.zip"},
            "created_at": "2026-01-01T00:00:00+00:00",
        },
    )


def test_it_is_plain_json_that_gives_the_verdict_back() -> None:
    again = json.loads(json.dumps(some_evidence()))
    assert Verdict.from_dict(again["verdict"]) == verdict()
    assert Question.from_dict(again["question"]) == QUESTION
    assert Recipe.model_validate(again["recipe"]) == RECIPE


def test_the_ladder_names_who_is_who_and_test_figures_stand_only_where_test_was_looked_at() -> None:
    ladder = {row["kind"]: row for row in some_evidence()["ladder"]}
    assert {kind: row["role"] for kind, row in ladder.items()} == {
        "majority": None, "zero_shot": None, "probe": "incumbent", "tf_idf": "reference", "lora": "candidate",
    }  # fmt: skip
    assert {kind: row["test"] for kind, row in ladder.items()} == {
        "majority": None, "zero_shot": None, "probe": 0.6, "tf_idf": 0.55, "lora": 0.9,
    }  # fmt: skip
    assert ladder["lora"]["validation"] == 0.85
    for row in ladder.values():
        low, high = row["interval"]
        assert low <= row["validation"] <= high


def test_each_seed_is_told_and_the_best_on_validation_speaks_for_training() -> None:
    evidence = some_evidence()
    assert evidence["seeds"] == [
        {"seed": 5, "validation": 0.8}, {"seed": 6, "validation": 0.85}, {"seed": 7, "validation": 0.7},
    ]  # fmt: skip
    assert evidence["training"]["selected"] == {"method": "lora"}
    assert evidence["training"]["samples_per_second"] == 100.0


def test_a_trials_kind_is_the_method_it_was_given_or_the_recipes() -> None:
    kinds = {row["trial"]: (row["kind"], row["epochs"]) for row in some_evidence()["sweep"]}
    assert kinds == {"one": ("lora", 3), "two": ("full", 2), "probe": ("probe", 0)}


def test_the_files_that_leave_with_a_version_all_say_the_outcome() -> None:
    evidence = some_evidence()
    written = files(evidence, role="candidate")
    assert set(written) == {"evidence.json", "report.html", "MODEL_CARD.md"}
    assert json.loads(written["evidence.json"]) == evidence
    assert b"FINE_TUNE" in written["report.html"]
    assert b"FINE_TUNE" in written["MODEL_CARD.md"]
    assert any("FINE_TUNE" in line for line in verdict_lines(evidence))
