"""The training function of a worker group, which trains one trial after another."""

import gc
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import ray
import torch.distributed as dist

from cluster.progress import TrialEvent
from tailorbird.storage import delete_folder, download_folder, upload_folder
from training import checkpoint, preemption
from training.deepspeed_private import destroy_engine
from training.errors import temporary_directory
from training.export import UnusableWeights, export_weights
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport, Progress, TrainingResult
from training.safe_checkpoint_loading import UnusableCheckpoint
from training.task import Diverged, TaskRuntime
from training.worker import epoch_event, send_event
from tuning.search_space import trial_config
from tuning.trial_broker import TrialAssignment, WorkerGroupJob

CHECKPOINT_WORTH_S = 120.0
"""Minimum seconds between checkpoints at the end of an epoch. Writing one takes up to 5 s (MiniLM on a busy machine
with two cores)."""

T = TypeVar("T")


def train_trials(job: WorkerGroupJob) -> None:
    """Take trials from the broker and train them, until the broker has no more."""
    preemption.install_handlers()
    runtime = ray.get(job.task).load_runtime(attention_dropout=job.training.attention_dropout)
    gc.freeze()  # exclude the shared runtime from the garbage collection after each trial
    while True:
        assignment = _from_rank_0(lambda: ray.get(job.broker.take.remote(job.group)))
        if assignment is None:
            return
        send_event(job.events, TrialEvent(assignment.trial, assignment.config, "training"))
        status = _TrialRun(job, assignment, runtime).run()
        send_event(job.events, TrialEvent(assignment.trial, assignment.config, status))


class _TrialRun:
    """A trial on a worker, from its checkpoint or from the first step.

    This class writes checkpoints to S3 itself, instead of with `ray.train.report`, because a group's Ray Train run
    covers many trials. Another group, or a group of a restarted driver, can resume each trial from its own checkpoints.
    """

    def __init__(self, job: WorkerGroupJob, assignment: TrialAssignment, runtime: TaskRuntime) -> None:
        self._job, self._assignment, self._runtime = job, assignment, runtime
        self._trial, self._broker = assignment.trial, job.broker
        self._config = trial_config(job.training, assignment.config)
        self._checkpoints = f"{job.uri}/checkpoints/{self._trial}"
        self._saved_at = time.perf_counter()

    def run(self) -> str:
        """Train, export the weights if they are the best so far, and return the trial's final status."""
        try:
            engine, progress = self._start_or_resume()
        except UnusableCheckpoint as error:
            return self._give_up(str(error))
        self._saved_at = time.perf_counter()
        callbacks = Callbacks(
            on_step=lambda step: send_event(self._job.events, replace(step, trial=self._trial)),
            on_epoch=self._on_epoch,
            on_save=self._save,
        )
        try:
            report = train(engine, self._config, runtime=self._runtime, callbacks=callbacks, progress=progress)
        except Diverged as error:
            destroy_engine(engine)
            return self._give_up(str(error))
        completed = report.epoch + 1 == self._config.epochs
        weights = f"{self._job.uri}/trial-{self._trial}"
        is_best = _from_rank_0(lambda: ray.get(self._broker.is_best.remote(score=report.score, completed=completed)))
        exported = is_best and self._export(engine, weights)
        if dist.get_rank() == 0:
            result = TrainingResult.of_report(report, weights=weights if exported else "")
            ray.get(self._broker.finish.remote(self._job.group, self._trial, result))
            delete_folder(self._checkpoints)
        destroy_engine(engine)
        return "completed" if completed else "stopped"

    def _start_or_resume(self) -> tuple[Any, Progress]:
        """Return an engine and its progress, resumed from the trial's checkpoint if there is one."""
        source = self._assignment.checkpoint
        if source is None:
            return build_engine(self._config, self._runtime), Progress()
        with temporary_directory() as parent:
            folder = parent / "checkpoint"
            download_folder(source, folder)
            return checkpoint.resume(self._config, self._runtime, folder=folder, uri=source)

    def _on_epoch(self, report: EpochReport, engine: Any) -> bool:
        send_event(self._job.events, epoch_event(report, trial=self._trial))
        last = report.epoch + 1 == self._config.epochs

        def decide() -> tuple[bool, bool]:
            continues = ray.get(self._broker.report.remote(self._trial, report, last=last))
            worth_s = min(CHECKPOINT_WORTH_S, self._config.checkpoint_interval_s)
            return continues, time.perf_counter() - self._saved_at >= worth_s

        continues, save_now = _from_rank_0(decide)
        if continues and save_now and not last:
            self._save(Progress(epoch=report.epoch + 1, last=report), engine)
        return continues

    def _save(self, progress: Progress, engine: Any) -> None:
        """Write a checkpoint, then raise Interrupted if this worker must stop."""
        uri = f"{self._checkpoints}/{progress.epoch}-{progress.step}-{dist.get_world_size()}"
        with temporary_directory() as folder:
            checkpoint.save(engine, self._config, folder=folder, progress=progress)
            upload_folder(folder, uri)
        dist.barrier()  # The checkpoint is complete when all ranks have stored their parts.
        if dist.get_rank() == 0:
            previous = ray.get(self._broker.saved.remote(self._trial, uri))
            if previous is not None:
                delete_folder(previous)
        self._saved_at = time.perf_counter()
        reason = preemption.preemption_reason()
        if reason is not None:
            raise preemption.Interrupted(
                f"{reason}; trial {self._trial} is checkpointed at epoch {progress.epoch + 1}, step {progress.step}"
            )

    def _export(self, engine: Any, weights: str) -> bool:
        """Upload the weights. Return False on rank 0 if they are unusable; the worker group does not fail."""
        with temporary_directory() as folder:
            try:
                export_weights(engine, self._config, runtime=self._runtime, folder=folder)
            except UnusableWeights:
                return False
            if dist.get_rank() == 0:
                upload_folder(folder, weights)
        return True

    def _give_up(self, message: str) -> str:
        """Mark the trial as failed without a retry, which would fail the same way."""
        if dist.get_rank() == 0:
            ray.get(self._broker.give_up.remote(self._job.group, self._trial, message))
            delete_folder(self._checkpoints)
        return "failed"


def _from_rank_0(function: Callable[[], T]) -> T:
    """Call `function` on rank 0 and return its value on every rank."""
    values: list[Any] = [function() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(values, src=0)
    value: T = values[0]
    return value
