"""The training function of the workers of `finetune`."""

from collections.abc import Callable
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
from training.export import UnusableWeights, upload_weights
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


def finetune_on_rank(
    config: TrainingConfig, *, task_ref: Any, weights: str, events: Any
) -> TrainingResult | str:
    """Train in a Ray Train worker, and export to the folder `weights`; see `train_and_export`."""
    preemption.install_handlers()
    runtime = ray.get(task_ref).load_runtime(attention_dropout=config.attention_dropout)
    saved = ray.train.get_checkpoint()
    uri = None
    if saved is not None:
        uri = f"{weights.partition('://')[0]}://{saved.path}"

    def on_epoch(report: EpochReport, engine: Any) -> bool:
        send_event(events, epoch_event(report, seed=config.seed))
        _save(Progress(epoch=report.epoch + 1, last=report), engine)
        return True

    def export_to(_: EpochReport) -> str:
        _wait_for_upload()  # its files are deleted before the weights are written to the same disk
        return weights

    callbacks = Callbacks(
        on_step=lambda step: send_event(events, replace(step, seed=config.seed)),
        on_epoch=on_epoch,
        on_save=_save,
    )
    try:
        return train_and_export(
            config, runtime, checkpoint_uri=uri, callbacks=callbacks, export_to=export_to
        )
    except UnusableCheckpoint as error:
        return (
            f"{error}; to start a new training, delete {weights.rpartition('/')[0]}/train and run "
            "again"
        )


def train_and_export(
    config: TrainingConfig,
    runtime: TaskRuntime,
    *,
    checkpoint_uri: str | None,
    callbacks: Callbacks,
    export_to: Callable[[EpochReport], str],
) -> TrainingResult | str:
    """Train from the checkpoint, if there is one, and export the weights.

    `export_to` receives the last report, and returns the folder for the weights, or an empty string
    if they are not exported. Return a message instead of raising an exception if a retry would fail
    again on all ranks, because Ray Train retries after exceptions. Raises UnusableCheckpoint.
    """
    progress = Progress()
    try:
        if checkpoint_uri is None:
            engine = build_engine(config, runtime)
        else:
            engine, progress = checkpoint.resume(config, runtime, uri=checkpoint_uri)
    except ModelError as error:
        return str(error)
    outcome: TrainingResult | str
    try:
        report = train(engine, config, runtime=runtime, callbacks=callbacks, progress=progress)
        weights = export_to(report)
        if weights:
            upload_weights(engine, config, runtime=runtime, uri=weights)
        outcome = TrainingResult.from_report(
            report, weights=weights, dtype=compute_dtype_name(config)
        )
    except (Diverged, UnusableWeights) as error:
        outcome = str(error)
    destroy_engine(engine)
    return outcome


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
