"""A run of a tiny chat model on local folders, in which all models answer the suites."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.predictions import TRAINING_TEXT
from tailorbird.pipeline.evaluate import predict_all
from tests import build, small_chat
from tests.unit.data.parquet_rows import put
from tests.unit.pipeline.contexts import context_of, recipe_at, run_locally

PAIRS = (("a b", "yes"), ("b c", "no"), ("c d", "yes"), ("d e", "no"))


def rows_of(name: str) -> Rows:
    return build.pairs([(f"{name} {text}", answer) for text, answer in PAIRS], chat=True)


def test_all_models_answer_the_suites_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_locally(monkeypatch)
    small_chat.save(tmp_path / "base")
    uri = put(
        tmp_path / "own.parquet",
        prompt=["yes or no"],
        metric=["forced_choice"],
        expectation=["yes"],
        options=[["yes", "no"]],
        group=["a"],
    )
    recipe = recipe_at(
        tmp_path / "registry",
        task="chat",
        data={"train": "s3://lake/x", "max_new_tokens": 3},
        evaluation={
            "metric": "exact_match",
            "prompt_draws": 1,
            "gates": {"suites": {"own": {"uri": uri}}},
        },
    )
    splits = Splits(rows_of("train"), rows_of("check"), rows_of("test"))
    context = context_of(recipe, splits, base_model=(tmp_path / "base").as_uri())
    baselines = {baseline.kind: baseline for baseline in context.task.fit_baselines()}
    models = {
        "incumbent": str(baselines["nearest"].uri),
        "candidate": str(baselines["zero_shot"].uri),
    }
    tables = predict_all(context, models, on_validation={})
    assert set(tables) == {"incumbent", "candidate", "incumbent_suite-own", "candidate_suite-own"}
    candidate, incumbent = tables["candidate_suite-own"], tables["incumbent_suite-own"]
    assert (candidate.model, len(candidate)) == ("zero_shot", 1)
    assert candidate.groups == {"group": ("a",)}
    assert 0 <= candidate.scores[0] <= 1
    assert np.isnan(incumbent.scores).all()
    copied = [table.measures[TRAINING_TEXT].tolist() for table in (incumbent, candidate)]
    assert copied == [[1.0], [0.0]]

    monkeypatch.setattr("tailorbird.pipeline.evaluate.predict_contender", None)  # not again
    again = predict_all(context, models, on_validation={})["candidate_suite-own"]
    assert again.logprobs_of(0) == pytest.approx(candidate.logprobs_of(0))
    hashes = context.inputs.hashes
    assert set(hashes) == {"train", "validation", "test", "suite-own"}
