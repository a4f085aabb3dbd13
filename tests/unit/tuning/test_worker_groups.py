"""Failures of a sweep's worker groups, without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train import WorkerGroupError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from cluster.progress import NoteEvent
from cluster.resources import Node, Resources
from tailorbird.config.training import TrainingConfig
from training import trainer
from training.errors import OutOfMemory
from tuning import worker_groups
from tuning.trial_broker import WorkerGroupJob
from tuning.worker_groups import MAX_HALVINGS, num_groups_that_fit, run_worker_groups

GIB = 1 << 30


@pytest.mark.parametrize(
    ("num_nodes", "head_bytes", "fields", "groups"),
    [
        (8, 64 * GIB, {"num_workers": 1}, 64),
        (8, 24 * GIB, {"num_workers": 1}, 27),
        (8, 24 * GIB, {"num_workers": 8}, 8),
        (2, 64 * GIB, {"num_workers": 5, "zero_stage": 2}, 3),
        (2, 64 * GIB, {"num_workers": 5, "zero_stage": 3}, 2),  # a group is on one node
    ],
)
def test_the_nodes_and_the_memory_of_the_drivers_node_limit_the_number_of_groups(
    monkeypatch: pytest.MonkeyPatch,
    num_nodes: int,
    head_bytes: int,
    fields: dict[str, Any],
    groups: int,
) -> None:
    gpus, cpus = Resources(64, 8), Resources(16)
    nodes = [Node(str(number), "", False, gpus, gpus) for number in range(num_nodes)]
    nodes.append(Node("head", "", True, cpus, cpus, memory_bytes=head_bytes))
    monkeypatch.setattr(worker_groups, "live_nodes", lambda: tuple(nodes))
    monkeypatch.setattr(worker_groups, "this_node", lambda: "head")
    config = TrainingConfig(gpus_per_worker=1, cpus_per_worker=8, **fields)
    assert num_groups_that_fit(config) == groups


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
        group="", training=TrainingConfig(), tasks={}, broker=broker, events=nothing, uri=""
    )
    with run_worker_groups(job, num_groups=3) as errors:
        pass
    assert errors == ["no node"]
    assert lost == [("group-1", "no node")]


@pytest.mark.parametrize("max_failures", [0, 2])
def test_a_group_restarts_as_often_as_its_trials_can_fail_and_requeues_them(
    monkeypatch: pytest.MonkeyPatch, max_failures: int
) -> None:
    """Ray's own policy decides about the failures; the workers do not run."""
    requeued: list[tuple[str, str, int | None]] = []
    notes: list[NoteEvent] = []

    def fit(torch_trainer: Any) -> None:
        policy = DefaultFailurePolicy(torch_trainer.run_config.failure_config)
        (callback,) = torch_trainer.run_config.callbacks
        error = WorkerGroupError("long", {0: KeyError("x"), 1: OutOfMemory(512)})
        decision = FailureDecision.RETRY
        while decision == FailureDecision.RETRY:
            callback.after_exception(run_context=None, worker_exceptions=error.worker_failures)
            decision = policy.make_decision(error)
        raise error

    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    monkeypatch.setattr(TorchTrainer, "fit", fit)

    def requeue(group: str, reason: str, *, batch_tokens: int | None) -> None:
        requeued.append((group, reason, batch_tokens))

    job = WorkerGroupJob(
        "group-0",
        TrainingConfig(max_failures=max_failures),
        tasks={},
        broker=SimpleNamespace(requeue=SimpleNamespace(remote=requeue)),
        events=SimpleNamespace(put=SimpleNamespace(remote=notes.append)),
        uri="file:///tmp/sweep",
        num_trials=20,
    )
    message = worker_groups._run_group(job)
    assert message is not None
    assert "worker 1: a GPU ran out of memory" in message
    assert len(requeued) == max_failures + 20 + MAX_HALVINGS + 1
    assert requeued[0] == ("group-0", message.removeprefix("worker group failed: "), 512)
    assert len(notes) == len(requeued)
