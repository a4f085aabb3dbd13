"""The settings of a draft are reduced until a run ends in time."""

from pathlib import Path

import pytest

from tailorbird.config.task_rules import TaskName
from tailorbird.data.profiling.token_lengths import TokenLengths
from tailorbird.init import time_budget
from tailorbird.init.task_defaults import DEFAULTS
from tailorbird.init.time_budget import MAX_SECONDS, DraftRows, RunSettings, TimeBudget, fit_settings
from tests.unit.pipeline.contexts import recipe_at

SHORT, LONG = TokenLengths(12.0, 10, 30, 0.0, 0, counted=True), TokenLengths(280.0, 260, 500, 60.0, 120, counted=True)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def budget(folder: Path, rows: DraftRows, *, lengths: TokenLengths, task: TaskName = "classification") -> TimeBudget:
    data = {"train": "s3://lake/x", "max_length": 512}
    training = {"epochs": 4, "num_seeds": 3, "num_workers": 1, "cpus_per_worker": 2}
    evaluation = {"metric": "token_f1"} if task == "chat" else {}
    recipe = recipe_at(folder, task=task, data=data, training=training, evaluation=evaluation)
    return fit_settings(recipe, rows, lengths=lengths, speed=DEFAULTS[task].speed)


def test_a_run_on_few_short_texts_keeps_its_settings(tmp_path: Path) -> None:
    done = budget(tmp_path, DraftRows(3_000, 500, 700, classes=5), lengths=SHORT)
    assert (done.settings, done.reduced) == (RunSettings(4), False)
    assert done.seconds is not None
    assert done.seconds < MAX_SECONDS


@pytest.mark.parametrize("num_train", [20_000, 500_000])
def test_a_run_on_many_long_texts_has_fewer_trials_epochs_and_rows(num_train: int, tmp_path: Path) -> None:
    done = budget(tmp_path, DraftRows(num_train, 2_000, 3_000, classes=5), lengths=LONG)
    assert done.reduced
    assert (done.settings.num_trials, done.settings.epochs) == (2, 2)
    assert 1_000 <= (done.settings.max_train_rows or 0) < num_train
    assert done.seconds is not None
    assert done.seconds <= MAX_SECONDS


def test_a_chat_run_answers_fewer_validation_and_test_rows(tmp_path: Path) -> None:
    done = budget(tmp_path, DraftRows(900, 5_000, 8_000, classes=0), lengths=LONG, task="chat")
    assert done.reduced
    assert (done.settings.max_validation_rows or 0) >= 200
    assert 300 <= (done.settings.max_test_rows or 0) < 8_000


def test_a_run_that_cannot_end_in_time_has_the_smallest_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time_budget, "MAX_SECONDS", 60.0)
    done = budget(tmp_path, DraftRows(3_000, 500, 700, classes=5), lengths=LONG)
    assert done.settings == RunSettings(2, num_trials=2, max_train_rows=1_500, max_test_rows=350)
    assert done.seconds is not None
    assert done.seconds > 60


def test_the_settings_of_a_model_of_unknown_speed_are_kept(tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, training={"epochs": 3})
    done = fit_settings(recipe, DraftRows(10**6, 10**5, 10**5, classes=5), lengths=LONG, speed=None)
    assert done == TimeBudget(RunSettings(3), None)
