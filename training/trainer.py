"""One fine-tuning as one Ray Train run, with checkpoints and a finite number of retries; leaves weights on S3."""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import torch.distributed as dist

from tailorbird.config.training import TrainingConfig
from tailorbird.storage import delete_folder, require_safe_names, upload_folder
from tailorbird.storage.s3 import PERSISTENT, filesystem, storage_errors
from training import checkpoint, preemption
from training.deepspeed_engine import destroy_engine
from training.errors import describe_failure, temporary_directory
from training.export import export_weights
from training.loop import EpochReport, OnSave, OnStep, Progress, StepReport, build_engine, train
from training.safe_checkpoint_loading import UnusableCheckpoint
from training.task import Diverged, TaskRuntime, TrainingTask

START_TIMEOUT_S = 600
"""Wait for a worker group's resources: an autoscaler needs minutes to bring a node."""
ELASTIC_START_TIMEOUT_S = 120
"""The same where fewer workers will do: right after a node is lost Ray still counts its CPUs, and the group that waits
for them has to give up before a smaller one is started."""


class TrainingFailed(RuntimeError):
    """A training that diverged, whose checkpoint is unusable, or whose workers failed more often than `max_failures`
    allows; the message is why."""


@dataclass(frozen=True)
class TrainingResult:
    """A finished training: its artifact and what it measured on validation rows."""

    weights: str
    """URI of the folder with the exported weights."""
    score: float
    epochs: int
    rows_per_second: float
    padding_share: float
    """Rows a second and padding are of the last epoch."""
    step_seconds: float
    """Inside training steps, of all epochs."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def finetune(section: TrainingConfig, *, task: TrainingTask, uri: str, relay: Any = None) -> TrainingResult:
    """Trains one configuration with one seed and exports it to `uri`/weights; checkpoints lie under `uri`/train.

    `relay` is an actor with a `tell(event)` method that hears of steps and epochs. Run again after the driver died,
    it goes on from the last checkpoint. Raises TrainingFailed; what diverged is not tried again, and keeps its last
    checkpoint.
    """
    config = {"section": section, "task": ray.put(task), "uri": uri, "relay": relay}
    trainer = build_torch_trainer(_finetune_worker, config, section=section, uri=f"{uri}/train")
    try:
        result = trainer.fit()
    except Exception as error:
        again = f" after {section.max_failures} retries" if isinstance(error, ray.train.WorkerGroupError) else ""
        kept = (
            "run it again, and it goes on from the last checkpoint, also with other gradient_checkpointing, "
            "checkpoint_interval_s or max_failures; with any other change of the training section it begins anew"
        )
        raise TrainingFailed(f"training failed for good{again}: {describe_failure(error, uri=uri)}; {kept}") from error
    if "failed" in result.return_value:
        raise TrainingFailed(result.return_value["failed"])
    delete_folder(f"{uri}/train")  # optimizer states are three times the model's size, and nobody needs them now
    return TrainingResult(**result.return_value)


def build_torch_trainer(
    function: Callable[[dict[str, Any]], Any],
    config: dict[str, Any],
    *,
    section: TrainingConfig,
    uri: str,
    callbacks: Sequence[Any] = (),
) -> Any:
    """A TorchTrainer over the section's workers, its state under `uri`, with finite retries."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    fixed = section.min_workers == section.max_workers
    timeout_s = START_TIMEOUT_S if fixed else ELASTIC_START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(timeout_s))  # Train has no field for it
    resources = {"CPU": section.cpus_per_worker}
    if section.gpus_per_worker:
        resources["GPU"] = section.gpus_per_worker
    num_workers = section.max_workers if fixed else (section.min_workers, section.max_workers)
    store, path = filesystem(uri, retry_policy=PERSISTENT)
    folder, _, name = path.rpartition("/")
    return TorchTrainer(
        function,
        train_loop_config=config,
        scaling_config=ScalingConfig(
            num_workers=num_workers, use_gpu=section.gpus_per_worker > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=store,
            callbacks=list(callbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(
                max_failures=section.max_failures,
                max_preemption_failures=section.max_failures,  # without end by default
                controller_failure_limit=2,
            ),
            worker_runtime_env={"env_vars": worker_environment(section)},
        ),
    )


def worker_environment(section: TrainingConfig) -> dict[str, str]:
    """Environment of a worker: a torch thread a CPU, patience with S3, and a malloc that keeps what a step frees.

    By default glibc gives large blocks back at once and gets them again page by page: 100,000 page faults a step, a
    third of its CPU time (59 to 63 rows a CPU-second, 89 to 102 without; MiniLM, stage 1, 32 rows of 12 tokens).
    """
    threads = str(section.cpus_per_worker)  # more threads than cores are ruinous
    malloc = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**28}
    return {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "AWS_MAX_ATTEMPTS": str(PERSISTENT.min_attempts),
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{name}={value}" for name, value in malloc.items()),
    }


def step_reporter(relay: Any, **labels: Any) -> OnStep:
    """A step listener that sends to `relay` without waiting; without one, nothing is sent."""

    def tell(report: StepReport) -> None:
        if relay is not None:
            relay.tell.remote({"event": "step", **labels, **asdict(report)})

    return tell


def _finetune_worker(config: dict[str, Any]) -> dict[str, Any]:
    section: TrainingConfig = config["section"]
    task: TrainingTask = ray.get(config["task"])
    preemption.install_handlers()
    material = task.load_runtime(attention_dropout=section.attention_dropout)
    try:
        engine, progress = _begin(section, material, uri=config["uri"])
    except UnusableCheckpoint as unusable:  # raised, it would be tried again, to the same end
        return {"failed": f"{unusable}; delete {config['uri']}/train, and run again: the training begins anew"}
    save = _saving(section, uri=config["uri"])

    def on_epoch(report: EpochReport, engine: Any) -> bool:
        if config["relay"] is not None and dist.get_rank() == 0:
            config["relay"].tell.remote({"event": "epoch", "seed": section.seed, **asdict(report)})
        save(Progress(epoch=report.epoch + 1, last=report), engine)
        return True

    try:
        report = train(
            engine,
            section,
            material=material,
            on_step=step_reporter(config["relay"], seed=section.seed),
            on_epoch=on_epoch,
            on_save=save,
            progress=progress,
        )
    except Diverged as diverged:  # the same
        return {"failed": str(diverged)}
    weights = f"{config['uri']}/weights"
    with temporary_directory() as folder:
        export_weights(engine, section, material=material, folder=folder)
        if dist.get_rank() == 0:
            upload_folder(folder, weights)
    dist.barrier()
    destroy_engine(engine)
    return asdict(training_result(report, weights=weights))


def training_result(report: EpochReport, *, weights: str) -> TrainingResult:
    """What a training says of itself at its end."""
    return TrainingResult(
        weights=weights,
        score=report.score,
        epochs=report.epoch + 1,
        rows_per_second=report.rows_per_second,
        padding_share=report.padding_share,
        step_seconds=report.total_seconds,
    )


def _begin(section: TrainingConfig, material: TaskRuntime, *, uri: str) -> tuple[Any, Progress]:
    """An engine at its first step, or where the last checkpoint is, and how far that is."""
    saved = ray.train.get_checkpoint()
    if saved is None:
        return build_engine(section, material), Progress()
    source = f"{uri.partition('://')[0]}://{saved.path}"
    require_safe_names(source)
    with temporary_directory(), saved.as_directory() as folder:
        dist.barrier()  # a node's workers share the folder, and one that comes later downloads into it once more
        return checkpoint.resume(section, material, folder=Path(folder), uri=source)


def _saving(section: TrainingConfig, *, uri: str) -> OnSave:
    """Writes a checkpoint and hands it to Ray Train, which has it on S3 when the call returns; raises Interrupted then,
    if this worker was told to go."""

    def save(progress: Progress, engine: Any) -> None:
        with temporary_directory() as folder:
            checkpoint.save(engine, section, folder=folder, progress=progress)
            told = {"epoch": progress.epoch, "step": progress.step}
            with storage_errors(uri):
                ray.train.report(told, checkpoint=ray.train.Checkpoint.from_directory(folder))
        who = preemption.preemption_reason()
        if who is not None:
            # Until the controller has every rank's report, the checkpoint does not count.
            ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
            raise preemption.Interrupted(f"{who}; kept at epoch {progress.epoch + 1}, step {progress.step}")

    return save
