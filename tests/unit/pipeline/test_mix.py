"""Tests of the stage that mixes the candidate with the bag of words."""

from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tailorbird import storage
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.evaluation.mix import mix_with_bag
from tailorbird.evaluation.mix_weight import MixRecord
from tailorbird.pipeline import mix
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.mix import MixResult, mix_candidate
from tests.unit.pipeline.contexts import context_of, recipe_at, run_locally, splits_of

BAG = Baseline("bag_of_words", "s3://m/bag", 0.6, True, "")
UNMIXED = Contender("full", "s3://m/full", 0.7)


@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_the_stage_returns_the_better_model_and_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    calls: list[dict[str, Any]] = []

    record = MixRecord(weight, validation=0.75 if weight < 1 else 0.7, unmixed=0.7)

    @wraps(mix_with_bag)
    def mixed(uri: str, **arguments: Any) -> MixRecord:
        calls.append({"uri": uri, **arguments})
        return record

    run_locally(monkeypatch)
    monkeypatch.setattr(mix, "mix_with_bag", mixed)
    context = context_of(recipe_at(tmp_path), splits_of())
    results = [mix_candidate(context, UNMIXED, baselines=[BAG]) for _ in range(2)]
    (call,) = calls
    (stage,) = storage.list_files(f"{context.recipe.task_uri}/stages")
    assert call["to"].startswith(stage.removesuffix("done.json"))
    expected = Contender("full_bag", call["to"], 0.75) if weight < 1 else UNMIXED
    assert results[0] == results[1]
    assert results[0].candidate == expected
    assert results[0].record == record
    assert (call["uri"], call["bag_uri"], call["metric"]) == (
        "s3://m/full",
        "s3://m/bag",
        "accuracy",
    )
    assert call["validation"] == context.splits.validation
    other_bag = Baseline("bag_of_words", "s3://m/other", 0.6, True, "")
    mix_candidate(context, UNMIXED, baselines=[other_bag])
    mix_candidate(context, Contender("full", "s3://m/other", 0.7), baselines=[BAG])
    assert len(storage.list_files(f"{context.recipe.task_uri}/stages")) == 3


def test_without_a_bag_of_words_nothing_is_mixed(tmp_path: Path) -> None:
    context = context_of(recipe_at(tmp_path), splits_of())
    baselines = [Baseline("zero_shot", "s3://m/zero", 0.5, True, "")]
    assert mix_candidate(context, UNMIXED, baselines=baselines) == MixResult(UNMIXED, None)
