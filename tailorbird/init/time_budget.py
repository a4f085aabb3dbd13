"""Settings with which a drafted run ends within a stated time on this machine."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from tailorbird.config.recipe import Recipe
from tailorbird.data.profiling.token_lengths import TokenLengths
from tailorbird.init.task_defaults import Speed
from tailorbird.pipeline.planned_stages import NUM_COST_ROWS, Sizes, planned_stages
from training.reports import Rates

MAX_SECONDS = 2 * 3600.0
NUM_TRIALS = 4
LEAST_TRAIN, LEAST_VALIDATION, LEAST_TEST = 1000, 200, 300  # rows below which a split is not reduced
FORWARD = 3.0  # rows per second of a forward pass relative to those of a training step, by the number of operations
LEAST_TRIALS, LEAST_EPOCHS = 2, 2


@dataclass(frozen=True)
class DraftRows:
    """Numbers of rows of the splits, as estimated for a draft."""

    train: int
    validation: int
    test: int
    classes: int  # 0 for a chat task


@dataclass(frozen=True)
class RunSettings:
    """Settings of a draft that determine how long a run takes. None is no limit."""

    epochs: int
    num_trials: int = NUM_TRIALS
    max_train_rows: int | None = None
    max_validation_rows: int | None = None
    max_test_rows: int | None = None


@dataclass(frozen=True)
class TimeBudget:
    """The settings of a draft, and how long a run takes with them."""

    settings: RunSettings
    seconds: float | None  # None if the speed of the base model is not known
    reduced: bool = False  # True if the settings were reduced to keep MAX_SECONDS

    @property
    def is_over(self) -> bool:
        """True if a run takes longer than MAX_SECONDS with the smallest settings."""
        return self.seconds is not None and self.seconds > MAX_SECONDS


def fit_settings(recipe: Recipe, rows: DraftRows, *, lengths: TokenLengths, speed: Speed | None) -> TimeBudget:
    """Return the settings of `recipe`, reduced until a run on this machine's CPUs ends within MAX_SECONDS, if possible.

    The slowest stage that can be reduced is reduced first: by trials, then epochs, then rows. `speed` is that of the
    base model on a CPU core; without it, nothing is reduced.
    """
    settings = RunSettings(recipe.training.epochs)
    if speed is None:
        return TimeBudget(settings, None)
    start = settings
    while True:
        stages = _seconds_by_stage(recipe, rows, settings=settings, lengths=lengths, speed=speed)
        total = sum(stages.values())
        slowest_first = sorted(stages, key=lambda name: -stages[name])
        smaller = next((each for name in slowest_first for each in _reduced(settings, rows, stage=name)), None)
        if total <= MAX_SECONDS or smaller is None:
            return TimeBudget(settings, total, reduced=settings != start)
        settings = smaller


def _reduced(settings: RunSettings, rows: DraftRows, *, stage: str) -> Iterator[RunSettings]:
    """Yield the settings with the first reduction that shortens a stage; nothing if there is none."""
    train = settings.max_train_rows or rows.train
    validation = settings.max_validation_rows or rows.validation
    test = settings.max_test_rows or rows.test
    if stage == "test":
        if test >= 2 * LEAST_TEST:
            yield replace(settings, max_test_rows=test // 2)
    elif stage == "baselines":
        # Those of a chat model answer the validation rows. Those of a classifier limit their time themselves.
        if not rows.classes and validation >= 2 * LEAST_VALIDATION:
            yield replace(settings, max_validation_rows=validation // 2)
    elif stage == "sweep" and settings.num_trials > LEAST_TRIALS:
        yield replace(settings, num_trials=settings.num_trials - 1)
    elif stage in ("sweep", "seeds") and settings.epochs > LEAST_EPOCHS:
        yield replace(settings, epochs=settings.epochs - 1)
    elif train >= 2 * LEAST_TRAIN:
        yield replace(settings, max_train_rows=train // 2)


def _seconds_by_stage(
    recipe: Recipe, rows: DraftRows, *, settings: RunSettings, lengths: TokenLengths, speed: Speed
) -> dict[str, float]:
    """Return the expected seconds of each stage of a run with these settings."""
    training = recipe.training.model_copy(update={"epochs": settings.epochs})
    tuning = recipe.tuning.model_copy(update={"num_trials": settings.num_trials})
    num_test = settings.max_test_rows or rows.test
    sizes = Sizes(
        settings.max_train_rows or rows.train,
        rows.train,
        settings.max_validation_rows or rows.validation,
        num_test,
        classes=rows.classes,
        groups=max(1, (os.cpu_count() or 1) // (training.max_workers * training.cpus_per_worker)),
        cost_rows=min(num_test, NUM_COST_ROWS[recipe.task]),
    )
    cores, tokens = training.cpus_per_worker, min(lengths.mean, recipe.data.max_length)
    rates = Rates(
        cores * speed.rows_per_second(tokens),
        cores
        * (
            speed.rows_per_second(tokens) * FORWARD
            if rows.classes
            else speed.generation / max(1.0, lengths.answer_mean)
        ),
        num_rows=0,
    )
    changed = recipe.model_copy(update={"training": training, "tuning": tuning})
    return {stage.name: stage.seconds or 0.0 for stage in planned_stages(changed, sizes, rates=rates)}
