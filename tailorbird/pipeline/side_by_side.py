"""Run several trainings at the same time."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import TypeVar

from training.trainer import stop_trainings

T = TypeVar("T")


def run_side_by_side(calls: Sequence[Callable[[], T]], *, at_once: int) -> list[T]:
    """Return the results of the calls, at most `at_once` of which run at the same time, each in a
    thread.

    If a call fails, no further call starts, and its error is raised when the others have ended. A
    single call at a time runs in this thread, where Ray Train handles Ctrl-C. Otherwise Ctrl-C
    stops the trainings, and is raised here.
    """
    if min(at_once, len(calls)) <= 1:
        return [call() for call in calls]
    waiting = deque(range(len(calls)))
    results: dict[int, T] = {}
    errors: list[Exception] = []

    def work() -> None:
        while waiting and not errors:
            try:
                number = waiting.popleft()
            except IndexError:  # another thread has taken the last call
                return
            try:
                results[number] = calls[number]()
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(at_once, len(calls)))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        waiting.clear()
        stop_trainings(threads)
        raise
    if errors:
        raise errors[0]
    return [results[number] for number in range(len(calls))]
