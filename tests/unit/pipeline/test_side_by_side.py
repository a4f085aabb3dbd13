"""Trainings that run at the same time."""

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tailorbird.config.training import TrainingConfig
from tailorbird.pipeline import run
from tailorbird.pipeline.side_by_side import run_side_by_side
from tests.unit.pipeline.contexts import context_of, recipe_at, splits_of
from training.reports import TrainingResult
from tuning.sweep import SweepResult

LIMIT_S = 20


def test_results_have_the_order_of_the_calls() -> None:
    second_is_over = threading.Event()

    def first() -> int:
        assert second_is_over.wait(LIMIT_S)
        return 1

    def second() -> int:
        second_is_over.set()
        return 2

    assert run_side_by_side([first, second], at_once=2) == [1, 2]


def test_no_more_calls_than_allowed_run_at_the_same_time() -> None:
    running = threading.Semaphore(2)
    both = threading.Barrier(2)

    def call(number: int) -> int:
        assert running.acquire(blocking=False)
        both.wait(LIMIT_S)
        running.release()
        both.wait(LIMIT_S)
        return number

    assert run_side_by_side([partial(call, number) for number in range(6)], at_once=2) == list(
        range(6)
    )


def test_an_error_is_raised_after_the_running_calls_have_ended() -> None:
    both = threading.Barrier(2)
    ended: list[str] = []

    def fail() -> None:
        both.wait(LIMIT_S)
        raise ValueError("diverged")

    def succeed() -> None:
        both.wait(LIMIT_S)
        ended.append("the other")

    with pytest.raises(ValueError, match="diverged"):
        run_side_by_side([fail, succeed], at_once=2)
    assert ended == ["the other"]


def test_no_call_starts_after_an_error() -> None:
    started: list[int] = []
    both = threading.Barrier(2)

    def fail(number: int) -> None:
        started.append(number)
        both.wait(LIMIT_S)
        raise ValueError("diverged")

    with pytest.raises(ValueError, match="diverged"):
        run_side_by_side([partial(fail, number) for number in range(4)], at_once=2)
    assert sorted(started) == [0, 1]


def test_one_call_at_a_time_runs_in_this_thread() -> None:
    threads = run_side_by_side([threading.get_ident] * 3, at_once=1)
    assert set(threads) == {threading.get_ident()}


def test_seeds_train_at_the_same_time_if_the_cluster_has_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2)

    def train(*_: Any, name: str, **__: Any) -> TrainingResult:
        both.wait(LIMIT_S)
        return result_of(name)

    monkeypatch.setattr(run, "_train", train)
    monkeypatch.setattr(run, "num_groups_that_fit", lambda _: 2)
    context = context_of(recipe_at(tmp_path, training={"num_seeds": 3}), splits_of())
    swept = SweepResult(
        base_model="s3://m/base", rows=(), selected=TrainingConfig(), trained=result_of("sweep")
    )
    trained = run.train_seeds(context, swept)
    assert [result.weights for result in trained] == ["sweep", "seed-1", "seed-2"]


def result_of(weights: str) -> TrainingResult:
    return TrainingResult(
        weights=weights,
        score=0.5,
        epochs=1,
        rows_per_second=1,
        padding_share=0,
        step_seconds=1,
        dtype="float32",
    )
