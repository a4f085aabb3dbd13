"""Trainings that run at the same time."""

import threading
from functools import partial

import pytest

from tailorbird.pipeline.side_by_side import run_side_by_side

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
