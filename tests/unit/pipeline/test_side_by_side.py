"""Trainings that run at the same time."""

import threading
import time
from functools import partial

import pytest

from tailorbird.pipeline.side_by_side import run_side_by_side

LIMIT_S = 20


def test_results_have_the_order_of_the_calls() -> None:
    second_is_over = threading.Event()

    def first() -> bool:
        return second_is_over.wait(LIMIT_S)

    assert run_side_by_side([first, second_is_over.set], at_once=2) == [True, None]


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


def test_an_error_is_raised_after_the_running_calls_have_ended_and_no_other_starts() -> None:
    both = threading.Barrier(2)
    started: list[int] = []
    ended: list[int] = []

    def call(number: int) -> None:
        started.append(number)
        both.wait(LIMIT_S)
        if number == 0:
            raise ValueError("diverged")
        time.sleep(0.1)  # the other thread has ended
        ended.append(number)

    with pytest.raises(ValueError, match="diverged"):
        run_side_by_side([partial(call, number) for number in range(4)], at_once=2)
    assert (sorted(started), ended) == ([0, 1], [1])


def test_one_call_at_a_time_runs_in_this_thread() -> None:
    threads = run_side_by_side([threading.get_ident] * 3, at_once=1)
    assert set(threads) == {threading.get_ident()}
