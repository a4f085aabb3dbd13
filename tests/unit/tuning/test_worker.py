"""The workers of a group wait for the broker longer than their process group waits for a rank."""

import threading
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from cluster.progress import NoteEvent, TrialEvent
from tailorbird.config.training import TrainingConfig
from training.errors import OutOfMemory
from tuning import worker
from tuning.trial_broker import TrialAssignment, WorkerGroupJob

GROUP_TIMEOUT_S, POLL_S, ANSWER_AFTER_S = 5, 0.5, 12


def wait_for_the_broker(rank: int, folder: Path) -> None:
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group(
        "gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2, timeout=timeout
    )
    worker.POLL_S = POLL_S
    pending: Future[Any] = Future()
    threading.Timer(ANSWER_AFTER_S, pending.set_result, ["trial-1"]).start()
    answer = worker.answer(lambda: pending)
    (folder / str(rank)).write_text(answer)
    dist.destroy_process_group()


@pytest.mark.long
def test_a_late_answer_of_the_broker_does_not_end_the_waiting_ranks(tmp_path: Path) -> None:
    spawn(wait_for_the_broker, (tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["trial-1", "trial-1"]


def test_a_trial_that_exceeds_its_gpu_continues_with_smaller_micro_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[tuple[str, str, int]] = []
    sent: list[NoteEvent] = []

    def out_of_memory(_: object) -> str:
        raise OutOfMemory("CUDA out of memory", 4, 512)

    monkeypatch.setattr(worker._TrialRun, "_run", out_of_memory)
    monkeypatch.setattr(ray, "get", lambda value: value)  # no cluster runs
    broker = SimpleNamespace(
        limit_tokens=SimpleNamespace(remote=lambda *limit: limits.append(limit))
    )
    events = SimpleNamespace(put=SimpleNamespace(remote=sent.append))
    nothing: Any = None
    training = TrainingConfig(num_workers=4)
    job = WorkerGroupJob("group-0", training, task=nothing, broker=broker, events=events, uri="")
    with pytest.raises(OutOfMemory):
        worker._TrialRun(job, TrialAssignment("trial-1", {}, checkpoint=None), nothing).run()
    assert limits == [("group-0", "trial-1", 512)]
    assert [
        event.text.endswith("training continues with training.batch_tokens: 512") for event in sent
    ] == [True]


@pytest.mark.parametrize(("num_workers", "is_final"), [(4, True), (2, False)])
def test_a_trial_that_exceeds_its_gpu_is_retried_only_if_the_group_has_lost_workers(
    monkeypatch: pytest.MonkeyPatch, num_workers: int, is_final: bool
) -> None:
    failed: list[tuple[str, str, str, bool]] = []
    sent: list[TrialEvent] = []

    def give_up(group: str, trial: str, message: str, *, by_workers: bool) -> None:
        failed.append((group, trial, message, by_workers))

    def out_of_memory(_: object) -> str:
        raise OutOfMemory("CUDA out of memory", num_workers)

    monkeypatch.setattr(worker._TrialRun, "_run", out_of_memory)
    monkeypatch.setattr(ray, "get", lambda value: value)  # no cluster runs
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    broker = SimpleNamespace(give_up=SimpleNamespace(remote=give_up))
    events = SimpleNamespace(put=SimpleNamespace(remote=sent.append))
    nothing: Any = None
    training = TrainingConfig.model_validate({"num_workers": {"min": 2, "max": 4}})
    job = WorkerGroupJob("group-0", training, task=nothing, broker=broker, events=events, uri="")
    trial = worker._TrialRun(job, TrialAssignment("trial-1", {}, checkpoint=None), nothing)
    with pytest.raises(OutOfMemory):
        trial.run()
    assert failed == [("group-0", "trial-1", "worker 1: CUDA out of memory", True)] * is_final
    assert sent == [TrialEvent("trial-1", {}, "failed")] * is_final
