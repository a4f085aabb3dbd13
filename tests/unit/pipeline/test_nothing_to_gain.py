"""A run starts no training if the validation rows leave less than the minimum gain over its
incumbent."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tailorbird.data.rows import Splits
from tailorbird.data.sharding.loading import LoadedDataset
from tailorbird.evaluation.baselines.baseline import CHAMPION, Baseline, select_incumbent
from tailorbird.evaluation.inference.endpoint_requests import RequestLimits
from tailorbird.evaluation.statistics.headroom import highest_rate
from tailorbird.pipeline.artifacts import register_contender
from tailorbird.pipeline.evaluate import evaluate_run, find_finished_run
from tailorbird.pipeline.nothing_to_gain import headroom_without_training, no_training_line
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.record import TrainedModels
from tailorbird.registry.versions import TRAINING_ROWS
from tests import small_encoder
from tests.separable import separable_rows
from tests.unit.pipeline.contexts import context_of, evaluate_locally, recipe_at, registering

NUM_VALIDATION = 320


@pytest.fixture(scope="module", autouse=True)
def _on_this_machine() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        evaluate_locally(monkeypatch)
        yield


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> RunContext:
    folder = tmp_path_factory.mktemp("registry")
    small_encoder.save(folder / "base")
    sizes = (48, NUM_VALIDATION, 40)
    splits = Splits(*(separable_rows(size, seed=seed) for seed, size in enumerate(sizes)))
    return context_of(recipe_at(folder), splits, base_model=(folder / "base").as_uri())


@pytest.fixture(scope="module")
def baselines(context: RunContext) -> tuple[Baseline, ...]:
    return context.task.fit_baselines()


def registered(context: RunContext, baselines: tuple[Baseline, ...], *, data: LoadedDataset) -> str:
    """Return the URI of the incumbent's version, which learned from these rows."""
    incumbent = select_incumbent(baselines)
    assert incumbent.uri is not None
    code = context.inputs.code.uri
    return register_contender(
        context.recipe.task_uri, incumbent.uri, code=code, limits=RequestLimits(), data=data
    ).uri


def test_no_training_starts_if_less_than_the_minimum_gain_is_left(
    context: RunContext, baselines: tuple[Baseline, ...]
) -> None:
    headroom = headroom_without_training(context, baselines)
    assert headroom is not None
    assert (headroom.score, headroom.num_rows) == (1.0, NUM_VALIDATION)
    assert headroom.most == pytest.approx(highest_rate(0, n=NUM_VALIDATION, alpha=0.05))
    line = no_training_line(context, headroom)
    assert "scores 100% on 320 validation rows, so at most 0.94 points can be gained" in line


def test_a_training_starts_if_the_rows_are_too_few_to_rule_a_gain_out(
    context: RunContext, baselines: tuple[Baseline, ...]
) -> None:
    protocol = context.protocol.model_copy(update={"minimum_gain": 0.009})
    assert headroom_without_training(registering(context, protocol=protocol), baselines) is None
    worse = tuple(replace(baseline, validation=0.9) for baseline in baselines)
    assert headroom_without_training(context, worse) is None


def test_a_champion_rules_a_gain_out_only_by_rows_that_it_does_not_know(
    context: RunContext, baselines: tuple[Baseline, ...]
) -> None:
    def is_ruled_out(uri: str) -> bool:
        contenders = (Baseline(CHAMPION, uri, 1.0, True, ""), *baselines)
        return headroom_without_training(registering(context, champion=uri), contenders) is not None

    assert not is_ruled_out(registered(context, baselines, data=context.inputs.data))
    others = Splits(*(separable_rows(size, seed=10 + size) for size in (48, 50, 52)))
    new = registered(context, baselines, data=context_of(context.recipe, others).inputs.data)
    assert is_ruled_out(new)
    # now nobody knows what it was trained on
    Path(f"{new.removeprefix('file://')}/{TRAINING_ROWS}").unlink()
    assert not is_ruled_out(new)


def test_a_run_without_a_training_has_a_verdict_with_evidence(
    context: RunContext, baselines: tuple[Baseline, ...]
) -> None:
    headroom = headroom_without_training(context, baselines)
    result = evaluate_run(context, TrainedModels(baselines, headroom=headroom))
    evidence = result.evidence
    assert "candidate" not in {model.role for model in evidence.family.models}
    assert evidence.family.headroom == evidence.verdict.headroom == headroom
    assert (evidence.training, evidence.sweep, evidence.seeds) == (None, (), ())
    assert evidence.cost.training.cpu_s == 0
    assert evidence.verdict.outcome == "STAY"
    assert find_finished_run(context) == result
