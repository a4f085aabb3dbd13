"""Tests of the stage that mixes the candidate with the bag of words."""

from dataclasses import replace
from functools import wraps
from pathlib import Path
from unittest.mock import Mock

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
    record = MixRecord(weight, validation=0.75 if weight < 1 else 0.7, unmixed=0.7)
    mixed = Mock(return_value=record)

    run_locally(monkeypatch)
    # a stage has the name and the module of its function
    named = wraps(mix_with_bag)(lambda *args, **kwargs: mixed(*args, **kwargs))
    monkeypatch.setattr(mix, "mix_with_bag", named)
    context = context_of(recipe_at(tmp_path), splits_of())
    results = [mix_candidate(context, UNMIXED, baselines=[BAG]) for _ in range(2)]
    (stage,) = storage.list_files(f"{context.recipe.task_uri}/stages")
    to = mixed.call_args.kwargs["to"]
    assert to.startswith(stage.removesuffix("done.json"))
    mixed.assert_called_once_with(
        UNMIXED.uri,
        bag_uri=BAG.uri,
        validation=context.splits.validation,
        metric="accuracy",
        to=to,
    )
    expected = Contender("full_bag", to, 0.75) if weight < 1 else UNMIXED
    assert results == [MixResult(expected, record)] * 2
    mix_candidate(context, UNMIXED, baselines=[replace(BAG, uri="s3://m/other")])
    mix_candidate(context, replace(UNMIXED, uri="s3://m/other"), baselines=[BAG])
    assert len(storage.list_files(f"{context.recipe.task_uri}/stages")) == 3


def test_without_a_bag_of_words_nothing_is_mixed(tmp_path: Path) -> None:
    context = context_of(recipe_at(tmp_path), splits_of())
    baselines = [Baseline("zero_shot", "s3://m/zero", 0.5, True, "")]
    assert mix_candidate(context, UNMIXED, baselines=baselines) == MixResult(UNMIXED, None)
