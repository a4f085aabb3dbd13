"""Failures of a sweep's worker groups, without Ray."""

from types import SimpleNamespace

from ray.exceptions import OutOfMemoryError

from tuning.worker_groups import RequeueOnFailure


def test_the_trial_of_a_failed_group_is_requeued_with_the_cause() -> None:
    calls: list[tuple[str, str]] = []
    broker = SimpleNamespace(requeue=SimpleNamespace(remote=lambda *arguments: calls.append(arguments)))
    callback = RequeueOnFailure(broker, "group-0", uri="s3://models/sweep")
    error = OutOfMemoryError("Task was killed due to the node running low on memory.")
    callback.after_exception(run_context=None, worker_exceptions={1: error})
    ((group, reason),) = calls
    assert group == "group-0"
    assert reason.startswith("worker 1: ")
    assert "memory" in reason
