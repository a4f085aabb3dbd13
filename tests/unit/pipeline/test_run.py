"""Decisions of the pipeline: order of checks, choice of the candidate, cached stages."""

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from cluster.progress import SILENT
from tailorbird import storage
from tailorbird.checks import preflight_evaluation
from tailorbird.config.training import TrainingConfig
from tailorbird.data.rows import DataError, Splits
from tailorbird.evaluation.baselines.baseline import Baseline
from tailorbird.models.endpoint.errors import EndpointError
from tailorbird.pipeline import run
from tailorbird.pipeline.artifacts import Contender
from tailorbird.pipeline.prepare import RunContext
from tailorbird.pipeline.run import best_on_validation
from tests import build, small_chat
from tests.unit.pipeline.contexts import (
    BASE,
    context_of,
    recipe_at,
    registering,
    run_locally,
    splits_of,
    training_result,
)
from tests.unit.serving.endpoint.versions import endpoint_version
from training.reports import TrainingResult
from training.trainer import finetune
from tuning.sweep import SweepResult, sweep


def swept(selected: TrainingConfig, trained: TrainingResult) -> SweepResult:
    return SweepResult(base_model=BASE, rows=(), selected=selected, trained=trained)


def fake(function: Callable[..., Any], value: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that returns `value(...)` and has the name and module of `function`."""
    return wraps(function)(lambda *args, **kwargs: value(*args, **kwargs))


def start_of(monkeypatch: pytest.MonkeyPatch, context: RunContext) -> None:
    """Let a new run have this context, and fail the test if it reaches its baselines."""
    monkeypatch.setattr(run, "prepare", lambda *_, **__: context)
    monkeypatch.setattr(run, "find_finished_run", lambda _: None)
    monkeypatch.setattr(
        run, "fit_baselines", lambda *_, **__: pytest.fail("the baselines were fitted first")
    )


@pytest.mark.parametrize(
    ("mean", "chosen"), [(None, "seed-1"), (0.739, "seed-1"), (0.74, "mean"), (0.75, "mean")]
)
def test_the_mean_of_the_weights_is_the_candidate_unless_a_seed_is_better(
    mean: float | None, chosen: str
) -> None:
    seeds = tuple(
        training_result(f"seed-{number}", score) for number, score in enumerate((0.71, 0.74, 0.73))
    )
    averaged = None if mean is None else Contender("full", "mean", mean)
    candidate = best_on_validation(seeds, averaged, method="full")
    assert candidate == Contender("full", chosen, max(0.74, mean or 0.0))


def test_the_candidate_has_the_precision_of_the_worker_that_trained_it() -> None:
    """Workers can have other hardware than the driver, and in a mixed cluster than each other."""
    seeds = (
        training_result("seed-0", 0.7, dtype="bfloat16"),
        training_result("seed-1", 0.8, dtype="float32"),
    )
    for uri, dtype in {"seed-0": "bfloat16", "seed-1": "float32", "mean": "bfloat16"}.items():
        assert run._dtype_of(Contender("full", uri, 0.8), seeds) == dtype


def test_fields_that_affect_no_result_can_change_without_a_new_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweep that ran out of memory resumes with gradient_checkpointing, and the seed runs use it
    too."""
    weights = (tmp_path / "weights" / "trial-a").as_uri()
    storage.write_bytes(f"{weights}/head.safetensors", b"")
    sweep_result = swept(TrainingConfig(batch_size=16), training_result(weights, 0.5))
    monkeypatch.setattr(run, "note_shortage", lambda *_, **__: None)
    monkeypatch.setattr(run, "sweep", fake(sweep, lambda *_, **__: sweep_result))
    monkeypatch.setattr(
        run, "finetune", fake(finetune, lambda *_, **__: training_result(weights, 0.5))
    )
    configs: list[TrainingConfig] = []
    train = run._train

    def recorded(context: Any, config: TrainingConfig, **kwargs: Any) -> TrainingResult:
        configs.append(config)
        return train(context, config, **kwargs)

    monkeypatch.setattr(run, "_train", recorded)
    stages = []
    for changed in (
        {},
        {"gradient_checkpointing": True, "checkpoint_interval_s": 60.0, "max_failures": 9},
    ):
        recipe = recipe_at(tmp_path, training={"batch_size": 16, "num_seeds": 2} | changed)
        context = replace(context_of(recipe, splits_of()), events="events")
        baselines = (Baseline("probe", "s3://m/probe", 0.4, True, ""),)
        result = run.run_sweep(context, baselines)
        run.train_seeds(context, result)
        stages.append(
            sorted(uri.rsplit("/", 2)[1] for uri in storage.list_files(f"{recipe.task_uri}/stages"))
        )
    assert stages[0] == stages[1]
    assert [name.rpartition("-")[0] for name in stages[0]] == ["seed-1", "sweep"]
    assert [(config.gradient_checkpointing, config.max_failures) for config in configs] == [
        (False, 2),
        (True, 9),
    ]


def test_a_training_keeps_only_the_weights_of_its_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: Any, uri: str, **__: Any) -> TrainingResult:
        for name in ("weights-interrupted", "weights-exported"):
            storage.write_bytes(f"{uri}/{name}/head.safetensors", b"")
        return training_result(f"{uri}/weights-exported", 0.5)

    monkeypatch.setattr(run, "finetune", fake(finetune, train))
    context = replace(context_of(recipe_at(tmp_path), splits_of()), events="events")
    trained = run._train(context, TrainingConfig(), name="seed-1")
    stage = trained.weights.rpartition("/")[0]
    files = [f"{stage}/done.json", f"{trained.weights}/head.safetensors"]
    assert sorted(storage.list_files(stage)) == files


def test_an_untrainable_chat_row_is_reported_before_the_baselines_are_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chat.save(tmp_path / "base")
    train, *others = (
        build.rows(texts, chat=True, first=7)
        for texts in (("ab", "c</s>d", "e"), ("f", "g"), ("h", "i"))
    )
    recipe = recipe_at(tmp_path, task="chat", evaluation={"metric": "token_f1"})
    context = context_of(recipe, Splits(train, *others), base_model=(tmp_path / "base").as_uri())
    run_locally(monkeypatch)
    start_of(monkeypatch, context)
    for start in (run.run_pipeline, run.sweep_only):
        with pytest.raises(
            DataError, match=r"training row 8: a turn of the user contains the special token '</s>'"
        ):
            start(recipe, progress=SILENT)


def test_an_endpoint_that_cannot_be_used_is_reported_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = {"url": "http://127.0.0.1:9/v1", "model": "m"}
    evaluation = {"contenders": {"hosted": {"endpoint": endpoint}}}
    of_recipe = context_of(recipe_at(tmp_path, evaluation=evaluation), splits_of())
    of_champion = registering(
        context_of(recipe_at(tmp_path), splits_of()), champion="s3://m/task/versions/e-1"
    )
    keyed = endpoint_version("http://127.0.0.1:9/v1")
    monkeypatch.setattr("tailorbird.pipeline.prepare.read_version", lambda _: keyed)
    for context, message in (
        (of_recipe, "127.0.0.1:9/v1/models cannot be reached"),
        (of_champion, "is not set in"),
    ):
        start_of(monkeypatch, context)
        for start in (run.run_pipeline, run.sweep_only, run.baselines_only):
            with pytest.raises(EndpointError, match=message):
                start(context.recipe, progress=SILENT)


@pytest.mark.parametrize(
    "sections", [{"training": {"gpus_per_worker": 1}}, {"serving": {"gpus_per_replica": 1}}]
)
def test_a_model_that_one_gpu_cannot_hold_is_refused_before_the_baselines_as_by_preflight(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, Any]
) -> None:
    small_chat.save(tmp_path / "base")
    base = (tmp_path / "base").as_uri()
    recipe = recipe_at(tmp_path, task="chat", evaluation={"metric": "token_f1"}, **sections)
    context = context_of(recipe, splits_of(), base_model=base)
    start_of(monkeypatch, context)
    monkeypatch.setattr(preflight_evaluation, "gpu_bytes_of_cluster", lambda: (80 << 30, 1 << 10))
    for start in (run.run_pipeline, run.sweep_only, run.baselines_only):
        with pytest.raises(
            ValueError, match=r"the weights take .* GiB in bf16, and the smallest GPU has 0 GiB"
        ):
            start(recipe, progress=SILENT)
    monkeypatch.setattr(preflight_evaluation, "gpu_bytes_of_cluster", lambda: (80 << 30,))
    run.require_usable(context, progress=SILENT)
