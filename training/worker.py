"""The training function of the workers of `finetune`."""

from dataclasses import replace
from typing import Any

import ray
import torch.distributed as dist

from cluster.progress import EpochEvent, ProgressEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.models.errors import ModelError
from training import checkpoint, preemption
from training.engine.deepspeed_engine import compute_dtype_name
from training.engine.deepspeed_private import destroy_engine
from training.errors import UnusableCheckpoint
from training.export import upload_weights
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport, Progress, TrainingResult
from training.task import Diverged, TaskRuntime


def send_event(events: Any, event: ProgressEvent) -> None:
    """Send an event from rank 0 to an EventQueue without waiting. Do nothing if `events` is
    None."""
    if events is not None and dist.get_rank() == 0:
        events.put.remote(event)


def epoch_event(
    report: EpochReport, *, seed: int | None = None, trial: str | None = None
) -> EpochEvent:
    """Return the progress event of an epoch's report."""
    return EpochEvent(
        epoch=report.epoch,
        score=report.score,
        loss=report.loss,
        rows_per_second=report.rows_per_second,
        seed=seed,
        trial=trial,
    )


def train_and_export(
    config: TrainingConfig, *, task_ref: Any, weights: str, events: Any
) -> TrainingResult | str:
    """Train in a Ray Train worker, and export to the folder `weights`.

    Return a message instead of raising an exception if a retry would fail again on all ranks,
    because Ray Train retries after exceptions.
    """
    preemption.install_handlers()
    runtime = ray.get(task_ref).load_runtime(attention_dropout=config.attention_dropout)
    try:
        engine, progress = _start_or_resume(config, runtime, scheme=weights.partition("://")[0])
    except UnusableCheckpoint as error:
        return (
            f"{error}; to start a new training, delete {weights.rpartition('/')[0]}/train and run "
            "again"
        )
    except ModelError as error:
        return str(error)

    def on_epoch(report: EpochReport, engine: Any) -> bool:
        send_event(events, epoch_event(report, seed=config.seed))
        _save(Progress(epoch=report.epoch + 1, last=report), engine)
        return True

    callbacks = Callbacks(
        on_step=lambda step: send_event(events, replace(step, seed=config.seed)),
        on_epoch=on_epoch,
        on_save=_save,
    )
    try:
        report = train(engine, config, runtime=runtime, callbacks=callbacks, progress=progress)
    except Diverged as error:
        return str(error)
    _wait_for_upload()  # its files are deleted before the weights are written to the same disk
    refusal = upload_weights(engine, config, runtime=runtime, uri=weights)
    destroy_engine(engine)
    if refusal:
        return refusal
    return TrainingResult.of_report(report, weights=weights, dtype=compute_dtype_name(config))


def _start_or_resume(
    config: TrainingConfig, runtime: TaskRuntime, *, scheme: str
) -> tuple[Any, Progress]:
    """Return an engine and its progress, resumed from Ray Train's last checkpoint if there is
    one."""
    saved = ray.train.get_checkpoint()
    if saved is None:
        return build_engine(config, runtime), Progress()
    return checkpoint.resume(config, runtime, uri=f"{scheme}://{saved.path}")


def _save(progress: Progress, engine: Any) -> None:
    """Write a checkpoint, and raise Interrupted if this worker must stop.

    Ray Train uploads it in a thread while training continues, and registers it when all ranks have
    uploaded their parts. At most one checkpoint is being uploaded; another save waits for it.
    """
    _wait_for_upload()
    folder = checkpoint.stage(engine, progress=progress)
    ray.train.report(
        {"epoch": progress.epoch, "step": progress.step},
        checkpoint=ray.train.Checkpoint.from_directory(folder),
        # deletes the folder after the upload
        checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
    )
    reason = preemption.preemption_reason()
    if reason is not None:
        _wait_for_upload()
        raise preemption.Interrupted(
            f"{reason}; checkpointed at epoch {progress.epoch + 1}, step {progress.step}"
        )


def _wait_for_upload() -> None:
    """Wait until the controller has registered the last checkpoint, after the reports of all
    ranks."""
    ray.train.get_all_reported_checkpoints(
        consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED
    )
