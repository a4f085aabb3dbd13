"""Fine-tune one configuration in one Ray Train run, with checkpoints and a finite number of retries."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist

from cluster.progress import EpochEvent, ProgressEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.storage import delete_folder, require_safe_names, upload_folder
from tailorbird.storage.s3 import PERSISTENT, filesystem, storage_errors
from training import checkpoint, preemption
from training.deepspeed_private import destroy_engine
from training.errors import describe_failure, temporary_directory
from training.export import export_weights
from training.loop import Callbacks, OnSave, build_engine, train
from training.reports import EpochReport, Progress, TrainingResult
from training.safe_checkpoint_loading import UnusableCheckpoint
from training.task import Diverged, TaskRuntime, TrainingTask

START_TIMEOUT_S = 600  # wait for a worker group's resources: an autoscaler needs minutes to bring a node
ELASTIC_START_TIMEOUT_S = 120
"""The same if fewer workers will do: right after a node is lost Ray still counts its CPUs, and the group that waits for
them has to give up before a smaller one is started."""


class TrainingFailed(RuntimeError):
    """A training that diverged, whose checkpoint is unusable, or whose workers failed more often than `max_failures`
    allows; the message is why."""


def finetune(config: TrainingConfig, *, task: TrainingTask, uri: str, events: Any = None) -> TrainingResult:
    """Train one configuration with one seed and export it to `uri`/weights; checkpoints are stored in `uri`/train.

    `events` is the handle of an EventQueue that gets each step and epoch. Run again after the driver died, it resumes
    from the last checkpoint. Raises TrainingFailed; a training that diverged is not retried and keeps its last
    checkpoint.
    """
    task_ref = ray.put(task)
    trainer = build_torch_trainer(
        lambda: _finetune_worker(config, task_ref=task_ref, uri=uri, events=events), config=config, uri=f"{uri}/train"
    )
    try:
        outcome: TrainingResult | str = trainer.fit().return_value
    except Exception as error:
        retries = f" after {config.max_failures} retries" if isinstance(error, ray.train.WorkerGroupError) else ""
        resume = (
            "run it again, and it goes on from the last checkpoint, also with other gradient_checkpointing, "
            "checkpoint_interval_s or max_failures; with any other change of the training section it begins anew"
        )
        cause = describe_failure(error, uri=uri)
        raise TrainingFailed(f"training failed for good{retries}: {cause}; {resume}") from error
    if isinstance(outcome, str):
        raise TrainingFailed(outcome)
    delete_folder(f"{uri}/train")  # optimizer states are three times the model's size
    return outcome


def build_torch_trainer(
    function: Callable[[], Any], *, config: TrainingConfig, uri: str, callbacks: Sequence[Any] = ()
) -> Any:
    """Return a TorchTrainer that runs `function` in the config's workers, with finite retries and state in `uri`."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    fixed = config.min_workers == config.max_workers
    timeout_s = START_TIMEOUT_S if fixed else ELASTIC_START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout_s))  # Train has no field for it
    resources: dict[str, float] = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    num_workers = config.max_workers if fixed else (config.min_workers, config.max_workers)
    store, path = filesystem(uri, retry_policy=PERSISTENT)
    folder, _, name = path.rpartition("/")
    return TorchTrainer(
        function,
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=config.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=store,
            callbacks=list(callbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(
                max_failures=config.max_failures,
                max_preemption_failures=config.max_failures,  # unlimited by default
                controller_failure_limit=2,
            ),
            worker_runtime_env={"env_vars": worker_environment(config)},
        ),
    )


def worker_environment(config: TrainingConfig) -> dict[str, str]:
    """Return a worker's environment: one torch thread per CPU, more S3 retries, and a malloc that keeps freed memory.

    By default glibc returns large blocks at once and gets them again page by page: 100,000 page faults a step, a third
    of its CPU time (59 to 63 rows a CPU-second, 89 to 102 without; MiniLM, stage 1, 32 rows of 12 tokens).
    """
    threads = str(config.cpus_per_worker)  # more threads than cores are several times slower
    malloc = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**28}
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "AWS_MAX_ATTEMPTS": str(PERSISTENT.min_attempts),
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in malloc.items()),
    }


def send_event(events: Any, event: ProgressEvent) -> None:
    """Send an event to an EventQueue from rank 0, without waiting; `events` may be None."""
    if events is not None and dist.get_rank() == 0:
        events.put.remote(event)


def epoch_event(report: EpochReport, *, seed: int | None = None, trial: str | None = None) -> EpochEvent:
    """Return the progress event of an epoch's report."""
    return EpochEvent(report.epoch, report.score, report.loss, report.rows_per_second, seed=seed, trial=trial)


def _finetune_worker(config: TrainingConfig, *, task_ref: Any, uri: str, events: Any) -> TrainingResult | str:
    """Train and export. Return the message of a failure that a retry would repeat: Ray Train retries after an error."""
    preemption.install_handlers()
    runtime = ray.get(task_ref).load_runtime(attention_dropout=config.attention_dropout)
    try:
        engine, progress = _start_or_resume(config, runtime, uri=uri)
    except UnusableCheckpoint as error:
        return f"{error}; delete {uri}/train, and run again: the training begins anew"
    save = _checkpoint_callback(config, uri=uri)

    def on_epoch(report: EpochReport, engine: Any) -> bool:
        send_event(events, epoch_event(report, seed=config.seed))
        save(Progress(epoch=report.epoch + 1, last=report), engine)
        return True

    callbacks = Callbacks(
        on_step=lambda step: send_event(events, replace(step, seed=config.seed)), on_epoch=on_epoch, on_save=save
    )
    try:
        report = train(engine, config, runtime=runtime, callbacks=callbacks, progress=progress)
    except Diverged as error:
        return str(error)
    weights = f"{uri}/weights"
    with temporary_directory() as folder:
        export_weights(engine, config, runtime=runtime, folder=folder)
        if dist.get_rank() == 0:
            upload_folder(folder, weights)
    dist.barrier()
    destroy_engine(engine)
    return TrainingResult.of_report(report, weights=weights)


def _start_or_resume(config: TrainingConfig, runtime: TaskRuntime, *, uri: str) -> tuple[Any, Progress]:
    """Return an engine at the first step or as of Ray Train's last checkpoint, and the progress."""
    saved = ray.train.get_checkpoint()
    if saved is None:
        return build_engine(config, runtime), Progress()
    source = f"{uri.partition('://')[0]}://{saved.path}"
    require_safe_names(source)
    with temporary_directory(), saved.as_directory() as folder:
        dist.barrier()  # workers of a node share the folder, and one that is late would download into it again
        return checkpoint.resume(config, runtime, folder=Path(folder), uri=source)


def _checkpoint_callback(config: TrainingConfig, *, uri: str) -> OnSave:
    """Return a callback that has Ray Train upload a checkpoint and then raises Interrupted if this worker must stop."""

    def save(progress: Progress, engine: Any) -> None:
        with temporary_directory() as folder:
            checkpoint.save(engine, config, folder=folder, progress=progress)
            metrics = {"epoch": progress.epoch, "step": progress.step}
            with storage_errors(uri):
                ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        reason = preemption.preemption_reason()
        if reason is not None:
            # A checkpoint counts only after the controller has every rank's report.
            ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
            raise preemption.Interrupted(f"{reason}; kept at epoch {progress.epoch + 1}, step {progress.step}")

    return save
