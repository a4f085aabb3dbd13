"""The training function of a worker group, which trains one trial after another."""

import gc
import shutil
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist

from cluster.progress import TrialEvent
from tailorbird.storage import delete_folder, upload_folder
from training import checkpoint, preemption
from training.errors import UnusableCheckpoint
from training.loop import Callbacks
from training.ranks import any_rank, from_rank_0
from training.reports import EpochReport, Progress
from training.task import TaskRuntime
from training.worker import epoch_event, send_event, train_and_export
from tuning.search_space import base_model_of, trial_config
from tuning.trial_broker import TrialAssignment, WorkerGroupJob

CHECKPOINT_WORTH_S = 120.0
"""Minimum seconds between checkpoints at the end of an epoch. Writing one takes up to 5 s (MiniLM
on a busy machine with two cores)."""

POLL_S = 30.0
"""Seconds between two messages of rank 0 to the others while it waits for the broker."""


def train_trials(job: WorkerGroupJob) -> None:
    """Take trials from the broker and train them, until the broker has no more."""
    preemption.install_handlers()
    loaded = None
    runtime: TaskRuntime | None = None
    while True:
        assignment = answer(lambda: job.broker.take.remote(job.group).future())
        if assignment is None:
            return
        base_model = base_model_of(assignment.config, tuple(job.tasks))
        if base_model != loaded:
            runtime = None  # memory has room for one base model
            runtime = _load_runtime(job, base_model)
            loaded = base_model
        assert runtime is not None
        send_event(job.events, TrialEvent(assignment.trial, assignment.config, "training"))
        status = _TrialRun(job, assignment, runtime).run()
        send_event(job.events, TrialEvent(assignment.trial, assignment.config, status))


def _load_runtime(job: WorkerGroupJob, base_model: str) -> TaskRuntime:
    gc.unfreeze()
    gc.collect()
    task = ray.get(job.tasks[base_model])
    runtime: TaskRuntime = task.load_runtime(attention_dropout=job.training.attention_dropout)
    gc.freeze()  # exclude the runtime from the garbage collection after each trial
    return runtime


class _TrialRun:
    """A trial on a worker, from its checkpoint or from the first step.

    This class writes checkpoints to S3 itself, instead of with `ray.train.report`, because a
    group's Ray Train run covers many trials. Another group, or a group of a restarted driver, can
    resume each trial from its own checkpoints. Each rank uploads its part in a thread while
    training continues. The broker records a checkpoint after the last rank has uploaded its part,
    so a checkpoint that a failure cuts off is never used.
    """

    def __init__(
        self, job: WorkerGroupJob, assignment: TrialAssignment, runtime: TaskRuntime
    ) -> None:
        self._job = job
        self._assignment = assignment
        self._runtime = runtime
        self._trial = assignment.trial
        self._broker = job.broker
        self._config = trial_config(job.training, assignment.config)
        self._checkpoints = f"{job.uri}/checkpoints/{self._trial}"
        self._saved_at = time.perf_counter()
        self._upload = checkpoint.Upload()

    def run(self) -> str:
        """Train, export the weights if they are the best so far, and return the trial's final
        status."""
        callbacks = Callbacks(
            on_step=lambda step: send_event(self._job.events, replace(step, trial=self._trial)),
            on_epoch=self._on_epoch,
            on_save=self._save,
        )
        try:
            result = train_and_export(
                self._config,
                self._runtime,
                checkpoint_uri=self._assignment.checkpoint,
                callbacks=callbacks,
                export_to=self._export_to,
            )
        except UnusableCheckpoint as error:
            return self._give_up(str(error))
        if isinstance(result, str):
            return self._give_up(result)

        if dist.get_rank() == 0:
            ray.get(self._broker.finish.remote(self._job.group, self._trial, result))
            delete_folder(self._checkpoints)
        if result.epochs == self._config.epochs:
            return "completed"
        return "stopped"

    def _export_to(self, report: EpochReport) -> str:
        """Return the folder for the weights, or an empty string if they are not the best so far."""
        completed = report.epoch + 1 == self._config.epochs
        is_best = answer(
            lambda: self._broker.is_best.remote(score=report.score, completed=completed).future()
        )
        # their files are deleted before the weights are written to the same disk
        self._finish_uploads()
        if is_best:
            return f"{self._job.uri}/trial-{self._trial}-{self._job.run}"
        return ""

    def _on_epoch(self, report: EpochReport, engine: Any) -> bool:
        send_event(self._job.events, epoch_event(report, trial=self._trial))
        last = report.epoch + 1 == self._config.epochs
        continues = bool(
            answer(lambda: self._broker.report.remote(self._trial, report, last=last).future())
        )
        worth_s = min(CHECKPOINT_WORTH_S, self._config.checkpoint_interval_s)
        if from_rank_0(continues and not last and time.perf_counter() - self._saved_at >= worth_s):
            self._save(Progress(epoch=report.epoch + 1, last=report), engine)
        return continues

    def _save(self, progress: Progress, engine: Any) -> None:
        """Write a checkpoint, upload it in a thread, and raise Interrupted if this worker must
        stop."""
        self._upload.wait()
        # The name is unique: a group that resumes an older checkpoint writes the same step again.
        name = from_rank_0(
            f"{progress.epoch}-{progress.step}-{dist.get_world_size()}-{uuid.uuid4().hex[:8]}"
        )
        folder = checkpoint.stage(engine, progress=progress)
        self._upload.start(partial(self._store, folder, uri=f"{self._checkpoints}/{name}"))
        self._saved_at = time.perf_counter()
        reason = preemption.preemption_reason()
        if any_rank(reason is not None):
            self._finish_uploads()
        if reason is not None:
            raise preemption.Interrupted(
                f"{reason}; trial {self._trial} is checkpointed at epoch {progress.epoch + 1}, "
                f"step {progress.step}"
            )

    def _store(self, folder: Path, *, uri: str) -> None:
        """Upload and delete this rank's part of a checkpoint. The last rank deletes the previous
        checkpoint."""
        try:
            upload_folder(folder, uri)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        previous = ray.get(
            self._broker.saved.remote(
                self._job.group, self._trial, uri, num_ranks=dist.get_world_size()
            )
        )
        if previous is not None:
            delete_folder(previous)

    def _finish_uploads(self) -> None:
        """Wait until all ranks have stored their parts of the last checkpoint."""
        self._upload.wait()
        dist.barrier()

    def _give_up(self, message: str) -> str:
        """Mark the trial as failed without a retry, which would fail the same way."""
        self._finish_uploads()
        if dist.get_rank() == 0:
            ray.get(self._broker.give_up.remote(self._job.group, self._trial, message))
            delete_folder(self._checkpoints)
        return "failed"


def answer(request: Callable[[], Future[Any]]) -> Any:
    """Send a request to the broker from rank 0, and return its answer on every rank.

    The broker may take longer to answer than `PROCESS_GROUP_TIMEOUT_S`. Rank 0 therefore tells the
    other ranks every `POLL_S` seconds that they must wait.
    """
    pending = request() if dist.get_rank() == 0 else None
    while True:
        if pending is not None:
            with suppress(TimeoutError):
                pending.exception(timeout=POLL_S)
        if from_rank_0(pending is not None and pending.done()):
            return from_rank_0(None if pending is None else pending.result())
