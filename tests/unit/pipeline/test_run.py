"""What the way of the data decides itself: what it tries first, who is the candidate, how many rows a curve is of."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tailorbird.data.rows import DataError, Rows
from tailorbird.pipeline import run
from tailorbird.pipeline.artifacts import Model
from tailorbird.pipeline.run import best_on_validation, learn_curve
from tailorbird.registry.versions import Prompting
from tests import small_chat
from training.chat_task import ChatTrainingTask
from training.trainer import Trained

SEEDS: Any = [SimpleNamespace(weights=f"seed-{number}", score=score) for number, score in enumerate((0.71, 0.74, 0.73))]


@pytest.mark.parametrize(("mean", "chosen"), [(None, "seed-1"), (0.739, "seed-1"), (0.74, "mean"), (0.75, "mean")])
def test_the_mean_of_the_weights_is_the_candidate_where_no_seed_is_better(mean: float | None, chosen: str) -> None:
    averaged = None if mean is None else Model("full", "mean", mean)
    candidate = best_on_validation(SEEDS, averaged, method="full")
    assert candidate == Model("full", chosen, max(0.74, mean or 0.0))


@pytest.mark.parametrize(
    ("num_train", "trained", "sizes"),
    [
        (800, [50, 100, 200, 400], (50, 100, 200, 400, 800)),
        (9000, [50, 100, 200, 400, 800], (50, 100, 200, 400, 800, 9000)),
    ],
)
def test_the_learning_curve_ends_with_all_rows_also_where_memory_holds_a_part(
    monkeypatch: pytest.MonkeyPatch, num_train: int, trained: list[int], sizes: tuple[int, ...]
) -> None:
    asked: list[int] = []

    def train(*_: Any, num_train_rows: int, **__: Any) -> Any:
        asked.append(num_train_rows)
        return SimpleNamespace(score=0.5 + num_train_rows / 4000)

    monkeypatch.setattr(run, "_train_once", train)
    splits = SimpleNamespace(train=range(800), validation=range(100))
    prepared: Any = SimpleNamespace(
        data=SimpleNamespace(num_train=num_train), splits=splits, classes=("a", "b"), run="run"
    )
    swept: Any = SimpleNamespace(selected=None, trained=SimpleNamespace(score=0.8))
    curve = learn_curve(prepared, swept, show=lambda _: None, relay=None)
    assert asked == trained
    assert curve.sizes == sizes
    assert curve.scores[-1] == 0.8


def test_a_change_that_changes_no_result_finds_the_stages_again_and_holds_from_then_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A sweep that ran out of memory goes on with gradient_checkpointing, and its seeds train with it."""
    training = {"batch_size": 16, "num_seeds": 2}
    stages: dict[str, dict[str, Any]] = {}

    def once(_: str, name: str, *, inputs: dict[str, Any], **__: Any) -> Any:
        value = {"weights": name, "score": 0.5, "epochs": 1, "rows_per_second": 1, "padding_share": 0}
        trained = value | {"step_seconds": 1}
        stages[name] = inputs
        selected = TrainingConfig(batch_size=16).model_dump()
        return {"rows": [], "selected": selected, "trained": trained, "ended": None} if name == "sweep" else trained

    seeds: list[TrainingConfig] = []
    finish = run._train_once

    def note(prepared: Any, config: TrainingConfig, **named: Any) -> Trained:
        seeds.append(config)
        return finish(prepared, config, **named)

    for name, put in {"once": once, "note_shortage": lambda *_, **__: None, "_train_once": note}.items():
        monkeypatch.setattr(run, name, put)
    found = []
    for changed in ({}, {"gradient_checkpointing": True, "checkpoint_interval_s": 60.0, "max_failures": 9}):
        recipe = SimpleNamespace(
            task_uri="s3://m/x",
            training=TrainingConfig.model_validate(training | changed),
            tuning=TuningConfig(),
            evaluation=SimpleNamespace(minimum_gain=0.01),
        )
        prepared: Any = SimpleNamespace(recipe=recipe, asked_of_training={}, key=lambda **inputs: inputs)
        rungs = [{"kind": "probe", "validation": 0.4, "servable": True}]
        swept = run.sweep_trials(prepared, rungs=rungs, show=lambda _: None, relay=None)
        run.train_seeds(prepared, swept, show=lambda _: None, relay=None)
        found.append(dict(stages))
    assert found[0] == found[1]
    assert sorted(found[0]) == ["seed-1", "sweep"]
    assert [(one.gradient_checkpointing, one.max_failures) for one in seeds] == [(False, 2), (True, 9)]


def test_a_chat_row_that_cannot_be_trained_on_is_named_before_the_ladder_is_climbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_chat.save(tmp_path)
    asked = tuple((("user", text),) for text in ("ab", "c</s>d", "e"))
    rows = Rows(("7", "8", "9"), ("ab", "cd", "e"), ("a", "b", "c"), conversations=asked)
    prompting = Prompting(system=None, max_new_tokens=8)
    task = ChatTrainingTask(
        base_model=tmp_path.as_uri(),
        train=rows,
        validation=rows,
        max_length=64,
        metric="exact_match",
        prompting=prompting,
    )
    prepared = SimpleNamespace(
        recipe=SimpleNamespace(task_uri="", training=SimpleNamespace(attention_dropout=None)),
        data=SimpleNamespace(report=SimpleNamespace(leaks=())),
        prompting=prompting,
        asked_of_training={},
        key=lambda **inputs: inputs,
        task=lambda: task,
    )
    for name, put in {
        "require_trackers": lambda _: None,
        "prepare": lambda *_, **__: prepared,
        "find": lambda _: None,
        "once": lambda *_, compute, **__: compute(""),
        "remotely": lambda function, _: function,
        "climb_ladder": lambda *_, **__: pytest.fail("the ladder was climbed first"),
    }.items():
        monkeypatch.setattr(run, name, put)
    recipe: Any = SimpleNamespace(tuning=None)
    for start in (run.run_pipeline, run.sweep_only):
        with pytest.raises(DataError, match=r"training row 8: a turn of the user spells '</s>'"):
            start(recipe, show=lambda _: None)
