"""What a sweep hears of its worker groups, without Ray."""

from types import SimpleNamespace
from typing import Any

from ray.exceptions import OutOfMemoryError

from tuning.sweep import _PutBack


def test_a_group_that_failed_puts_its_trial_back_with_the_cause() -> None:
    told: list[Any] = []
    desk = SimpleNamespace(put_back=SimpleNamespace(remote=lambda *given: told.append(given)))
    callback = _PutBack(desk, "group-0", uri="s3://models/sweep")
    error = OutOfMemoryError("Task was killed due to the node running low on memory.")
    callback.after_exception(run_context=None, worker_exceptions={1: error})
    assert [group for group, _ in told] == ["group-0"]
    assert told[0][1].startswith("worker 1: ")
    assert "memory" in told[0][1]
