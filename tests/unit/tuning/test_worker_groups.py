"""Failures of a sweep's worker groups, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError
from ray.train import ControllerError, WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from cluster.resources import Node, Resources
from tailorbird.config.training import TrainingConfig
from tests.unit.tuning.broker import new_broker
from training import trainer
from training.errors import OutOfMemory, RepeatedFailure
from training.preemption import Interrupted
from tuning import worker_groups
from tuning.trial_broker import WorkerGroupJob
from tuning.worker_groups import (
    RequeueOnFailure,
    num_groups_that_fit,
    repeated_failure,
    run_worker_groups,
)

GIB = 1 << 30
MISSING = ModuleNotFoundError("No module named 'liger_kernel'")


@pytest.mark.parametrize(
    ("head_bytes", "workers", "groups"),
    [(64 * GIB, 1, 64), (24 * GIB, 1, 27), (24 * GIB, 8, 8), (0, 1, 64)],
)
def test_the_nodes_and_the_memory_of_the_drivers_node_limit_the_number_of_groups(
    monkeypatch: pytest.MonkeyPatch, head_bytes: int, workers: int, groups: int
) -> None:
    gpus = [
        Node(str(n), f"10.0.0.{n}", False, Resources(64, 8), Resources(64, 8)) for n in range(8)
    ]
    head = Node("head", "10.0.0.9", True, Resources(16), Resources(16), memory_bytes=head_bytes)
    monkeypatch.setattr(worker_groups, "live_nodes", lambda: (head, *gpus))
    monkeypatch.setattr(worker_groups, "this_node", lambda: "head")
    config = TrainingConfig(num_workers=workers, gpus_per_worker=1, cpus_per_worker=8)
    assert num_groups_that_fit(config) == groups


def test_at_zero_stage_3_the_workers_of_a_group_are_on_one_node(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gpus = tuple(
        Node(str(n), f"10.0.0.{n}", False, Resources(64, 8), Resources(64, 8)) for n in range(2)
    )
    monkeypatch.setattr(worker_groups, "live_nodes", lambda: gpus)
    monkeypatch.setattr(worker_groups, "this_node", lambda: "head")
    groups = {
        stage: num_groups_that_fit(
            TrainingConfig(num_workers=5, gpus_per_worker=1, zero_stage=stage)
        )
        for stage in (2, 3)
    }
    assert groups == {2: 3, 3: 2}


def test_groups_run_without_a_process_each_and_a_lost_group_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lost: list[tuple[str, str]] = []
    broker = SimpleNamespace(
        group_lost=SimpleNamespace(remote=lambda group, error, **_: lost.append((group, error))),
        close=SimpleNamespace(remote=lambda: None),
    )
    monkeypatch.setattr(ray, "get", lambda value: value)  # no cluster runs
    monkeypatch.setattr(
        worker_groups, "_run_group", lambda job: "no node" if job.group == "group-1" else None
    )
    nothing: Any = None
    job = WorkerGroupJob(
        group="", training=TrainingConfig(), task=nothing, broker=broker, events=nothing, uri=""
    )
    with run_worker_groups(job, num_groups=3) as errors:
        pass
    assert errors == ["no node"]
    assert lost == [("group-1", "no node")]


@pytest.mark.parametrize("max_failures", [0, 2])
def test_a_group_restarts_after_each_trial_that_exceeds_its_gpu_and_its_own_failures_are_limited(
    monkeypatch: pytest.MonkeyPatch, max_failures: int
) -> None:
    """Ray's own policy decides about the failures; the workers do not run."""
    num_failures = 0

    def fit(torch_trainer: Any) -> None:
        nonlocal num_failures
        policy = DefaultFailurePolicy(torch_trainer.run_config.failure_config)
        error = WorkerGroupError("long", {0: OutOfMemory("CUDA out of memory", 1)})
        while policy.make_decision(error) == FailureDecision.RETRY:
            num_failures += 1
        raise error

    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    nothing: Any = None
    training = TrainingConfig(max_failures=max_failures)
    job = WorkerGroupJob(
        "group-0",
        training,
        task=nothing,
        broker=nothing,
        events=nothing,
        uri="file:///tmp/sweep",
        num_trials=20,
    )
    assert worker_groups._run_group(job) == "worker group failed: worker 0: CUDA out of memory"
    assert num_failures == max_failures + 20 + worker_groups.MAX_HALVINGS


def test_the_trial_of_a_failed_group_is_requeued_with_the_cause() -> None:
    calls: list[tuple[str, str]] = []
    broker = SimpleNamespace(
        requeue=SimpleNamespace(remote=lambda *arguments: calls.append(arguments))
    )
    callback = RequeueOnFailure(broker, "group-0", uri="s3://models/sweep", max_failures=2)
    error = OutOfMemoryError("Task was killed due to the node running low on memory.")
    callback.after_exception(run_context=None, worker_exceptions={1: error})
    ((group, reason),) = calls
    assert group == "group-0"
    assert reason.startswith("worker 1: ")
    assert "memory" in reason


def handle_of_a_broker(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a handle of a broker that counts failures and ignores requeued trials."""
    monkeypatch.setattr(ray, "get", lambda value: value)  # no cluster runs
    counted = SimpleNamespace(remote=new_broker().count_failure)
    return SimpleNamespace(requeue=SimpleNamespace(remote=lambda *_: None), count_failure=counted)


@pytest.mark.parametrize(("max_failures", "times"), [(0, "once"), (2, "3 times")])
def test_a_group_whose_trials_all_fail_with_one_error_ends_soon_with_this_error(
    monkeypatch: pytest.MonkeyPatch, max_failures: int, times: str
) -> None:
    """Ray's own policy decides about the failures that the callback lets pass; the workers do not
    run."""
    failures: list[WorkerGroupError] = []

    def fit(torch_trainer: Any) -> None:
        (callback,) = torch_trainer.run_config.callbacks
        policy = DefaultFailurePolicy(torch_trainer.run_config.failure_config)
        while True:
            failures.append(WorkerGroupError("long", {0: MISSING}))
            try:
                callback.after_exception(
                    run_context=None, worker_exceptions=failures[-1].worker_failures
                )
            except RepeatedFailure as error:
                raise ControllerError(error) from error
            assert policy.make_decision(failures[-1]) == FailureDecision.RETRY

    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    monkeypatch.setattr(TorchTrainer, "fit", fit)
    nothing: Any = None
    job = WorkerGroupJob(
        "group-0",
        TrainingConfig(max_failures=max_failures),
        task=nothing,
        broker=handle_of_a_broker(monkeypatch),
        events=nothing,
        uri="file:///tmp/sweep",
        num_trials=20,
    )
    message = worker_groups._run_group(job)
    assert len(failures) == max_failures + 1
    assert message == (
        f"worker group failed: its workers failed {times} without a finished trial: worker 0: "
        "ModuleNotFoundError: No module named 'liger_kernel'; remove the cause and run again, "
        f"which resumes the sweep (training.max_failures is {max_failures})"
    )


def test_trials_without_enough_memory_and_preemptions_do_not_end_a_group(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    callback = RequeueOnFailure(
        handle_of_a_broker(monkeypatch), "group-0", uri="s3://models/sweep", max_failures=1
    )
    callback.after_exception(run_context=None, worker_exceptions={0: MISSING})
    for error in (
        OutOfMemory("CUDA out of memory", 1),
        Interrupted("a node is being drained"),
    ) * 20:
        callback.after_exception(
            run_context=None, worker_exceptions={0: RuntimeError("connection lost"), 1: error}
        )
    with pytest.raises(RepeatedFailure, match="failed 2 times"):
        callback.after_exception(run_context=None, worker_exceptions={0: MISSING})


def test_the_message_of_a_group_that_ends_names_each_error_once() -> None:
    reasons = ["worker 0: its node was lost", "worker 0: KeyError", "worker 0: its node was lost"]
    assert repeated_failure(reasons, max_failures=3) is None
    message = repeated_failure(reasons, max_failures=2)
    assert message is not None
    assert (
        "without a finished trial: worker 0: its node was lost; worker 0: KeyError; remove"
        in message
    )
