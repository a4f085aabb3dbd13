"""The settings of a draft are reduced if a run would take long."""

import pytest

from tailorbird.config.task_rules import TaskName
from tailorbird.data.profiling.token_lengths import TokenLengths
from tailorbird.init.task_defaults import DEFAULTS
from tailorbird.init.time_budget import RunSettings, draft_settings

SHORT, LONG = (
    TokenLengths(12.0, 10, 30, 0.0, 0, counted=True),
    TokenLengths(280.0, 260, 500, 60.0, 120, counted=True),
)


@pytest.fixture(autouse=True)
def _two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def settings(
    num_train: int, num_test: int, *, lengths: TokenLengths, task: TaskName = "classification"
) -> RunSettings:
    return draft_settings(
        num_train, num_test=num_test, epochs=4, lengths=lengths, defaults=DEFAULTS[task]
    )


def test_a_run_on_few_short_texts_keeps_its_settings() -> None:
    assert settings(3_000, 700, lengths=SHORT) == RunSettings(4)


def test_a_run_on_many_long_texts_has_fewer_trials_epochs_and_rows() -> None:
    done = settings(500_000, 3_000, lengths=LONG)
    assert done.is_reduced
    assert (done.num_trials, done.epochs) == (2, 2)
    assert 1_000 <= (done.max_train_rows or 0) < 500_000
    assert done.max_test_rows is None  # labels take little time


def test_a_run_keeps_enough_rows() -> None:
    endless = TokenLengths(1e6, 10**6, 10**6, 1e6, 10**6, counted=True)
    done = settings(5_000, 5_000, lengths=endless, task="chat")
    assert (done.max_train_rows, done.max_test_rows) == (1_000, 300)
    assert (done.max_validation_rows or 0) >= 200
