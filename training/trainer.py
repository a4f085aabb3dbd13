"""Fine-tune one configuration in one Ray Train run, with checkpoints and a finite number of
retries."""

import os
import threading
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import ray
from ray.train import UserCallback

from cluster import ray_private
from cluster.progress import NoteEvent
from cluster.resources import Resources, gpu_visibility, live_nodes, worker_resources
from tailorbird.config.training import PROCESS_GROUP_TIMEOUT_S, TrainingConfig
from tailorbird.storage import delete_folder
from tailorbird.storage.s3 import PERSISTENT, filesystem
from tailorbird.storage.stage_cache import new_name
from training.errors import OutOfMemory, describe_failure, out_of_memory
from training.reports import TrainingResult
from training.tokenization import with_tokenized_rows

if TYPE_CHECKING:
    # Ray Train's controller imports this module; torch would add seconds.
    from training.task import TrainingTask

START_TIMEOUT = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
START_TIMEOUT_S = 600
"""Time to wait for the resources of a worker group. An autoscaler needs minutes to add a node."""
ELASTIC_START_TIMEOUT_S = 120
"""The same time if `num_workers` is a range. Ray still counts a lost node's CPUs for a while. A
worker group that waits for these CPUs must time out before a smaller group can start."""


STOP_INTERVAL_S = 0.5
ALLOCATOR = "PYTORCH_ALLOC_CONF"  # variable with the options of torch's GPU allocator


class TrainingFailed(RuntimeError):
    """The training diverged, its checkpoint is unusable, a row exceeds the memory of a GPU, or too
    many workers failed."""


def finetune(
    config: TrainingConfig, *, task: "TrainingTask", uri: str, events: Any = None
) -> TrainingResult:
    """Train one configuration with one seed and export it to a new folder in `uri`; checkpoints are
    in `uri`/train.

    `events` is the handle of an EventQueue that receives step and epoch events. If the driver
    fails, another call resumes from the last checkpoint. Raises TrainingFailed. A training that
    diverged is not retried and keeps its last checkpoint.
    """
    task_ref = ray.put(with_tokenized_rows(task))
    weights = f"{uri}/weights-{new_name()}"  # another driver of this training must not replace them

    def work(config: TrainingConfig) -> TrainingResult | str:
        from training.worker import finetune_on_rank  # in workers only: it imports DeepSpeed

        return finetune_on_rank(config, task_ref=task_ref, weights=weights, events=events)

    try:
        outcome = _run_until_it_fits(config, work=work, uri=f"{uri}/train", events=events)
    except Exception as error:
        retries = ""
        if isinstance(error, ray.train.WorkerGroupError):
            retries = f" after {config.max_failures} retries"
        advice = (
            "run it again to resume from the last checkpoint; you may change "
            "training.batch_tokens, gradient_checkpointing, checkpoint_interval_s and max_failures "
            "(any other change of the training section starts a new training)"
        )
        cause = describe_failure(error, uri=uri)
        raise TrainingFailed(f"training failed{retries}: {cause}; {advice}") from error
    if isinstance(outcome, str):
        raise TrainingFailed(outcome)
    delete_folder(f"{uri}/train")  # checkpoints have three times the model's size
    return outcome


def _run_until_it_fits(
    config: TrainingConfig,
    *,
    work: Callable[[TrainingConfig], TrainingResult | str],
    uri: str,
    events: Any,
) -> TrainingResult | str:
    """Run the training, and resume it with smaller micro-batches as long as a GPU does not have
    enough memory for one."""
    while True:
        trainer = build_torch_trainer(
            partial(work, config), config=config, uri=uri, callbacks=[EndAtOutOfMemory()]
        )
        try:
            outcome: TrainingResult | str = trainer.fit().return_value
        except Exception as error:
            failure = getattr(error, "controller_failure", None)
            if not isinstance(failure, OutOfMemory):
                raise
            if events is not None:
                events.put.remote(NoteEvent(str(failure)))
            config = config.model_copy(update={"batch_tokens": failure.batch_tokens})
        else:
            return outcome


class EndAtOutOfMemory(UserCallback):  # type: ignore[misc]
    """Callback that ends a run with the OutOfMemory of a worker, because Ray Train does not retry
    after an error of a callback."""

    def after_exception(self, *, worker_exceptions: dict[int, Exception], **_: Any) -> None:
        error = out_of_memory(worker_exceptions.values())
        if error is not None:
            raise error


def stop_trainings(threads: Sequence[threading.Thread]) -> None:
    """Stop the trainings of this driver, and wait until the threads that run them have ended.

    Call it if the driver is interrupted: `ray.shutdown` crashes the process while a thread waits
    for a training.
    """
    for thread in threads:
        while thread.is_alive():
            ray_private.kill_train_controllers()  # again, because the thread may start a training
            thread.join(STOP_INTERVAL_S)


@cache
def _operator_timeout() -> str | None:
    """Return the start timeout that an operator set before this process set one."""
    return os.environ.get(START_TIMEOUT)


def build_torch_trainer(
    function: Callable[[], Any],
    *,
    config: TrainingConfig,
    uri: str,
    callbacks: Sequence[Any] = (),
    more_failures: int = 0,
) -> Any:
    """Return a TorchTrainer that runs `function` in the config's workers and stores its state in
    `uri`.

    The trainer retries after a failure, at most `max_failures` plus `more_failures` times, and
    separately after a preemption, at most `max_failures` times.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    fixed = config.min_workers == config.max_workers
    timeout_s = START_TIMEOUT_S if fixed else ELASTIC_START_TIMEOUT_S
    os.environ[START_TIMEOUT] = _operator_timeout() or str(timeout_s)  # Ray reads only the variable
    resources: dict[str, float] = {"CPU": config.cpus_per_worker}
    if config.gpus_per_worker:
        resources["GPU"] = config.gpus_per_worker
    num_workers: int | tuple[int, int] = (config.min_workers, config.max_workers)
    if fixed:
        num_workers = config.max_workers
    store, path = filesystem(uri, retry_policy=PERSISTENT)
    folder, _, name = path.rpartition("/")
    return TorchTrainer(
        function,
        torch_config=TorchConfig(timeout_s=PROCESS_GROUP_TIMEOUT_S),
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=config.gpus_per_worker > 0,
            resources_per_worker=resources,
            placement_strategy=placement_strategy(
                config, nodes=[node.total for node in live_nodes()]
            ),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=folder,
            storage_filesystem=store,
            callbacks=list(callbacks),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            failure_config=FailureConfig(
                max_failures=config.max_failures + more_failures,
                max_preemption_failures=config.max_failures,  # Ray's default is unlimited
                controller_failure_limit=2,
            ),
            worker_runtime_env={"env_vars": worker_environment(config)},
        ),
    )


def placement_strategy(config: TrainingConfig, *, nodes: Sequence[Resources]) -> str:
    """Return Ray's placement strategy for a config's workers on nodes with these resources.

    `PACK` uses few nodes, but starts on a partly used node even if all workers fit on another one.
    At ZeRO stage 3, all workers exchange all weights in each forward and backward pass, so GPUs of
    one node are used if a node has enough.
    """
    fixed = config.min_workers == config.max_workers
    fit = any(node.num_workers(worker_resources(config)) >= config.max_workers for node in nodes)
    if config.zero_stage == 3 and config.gpus_per_worker and fixed and fit:
        return "STRICT_PACK"
    return "PACK"


def worker_environment(config: TrainingConfig) -> dict[str, str]:
    """Return a worker's environment: one torch thread per CPU, more S3 retries, and a malloc that
    keeps freed memory.

    A worker without a GPU sees none. On a GPU, torch's allocator uses expandable segments, which
    avoid fragmentation if the lengths of rows vary, unless this process has other options of the
    allocator in its environment.

    By default, glibc returns freed large blocks to the kernel and maps them again at the next
    allocation. This causes 100,000 page faults per step, a third of the CPU time. With these
    settings, training processes 89 to 102 rows per CPU-second instead of 59 to 63 (MiniLM, stage 1,
    32 rows of 12 tokens).
    """
    threads = str(config.cpus_per_worker)  # more than cores make training several times slower
    malloc = {"hugetlb": 1, "mmap_max": 0, "trim_threshold": 2**34, "top_pad": 2**28}
    tunables = [f"glibc.malloc.{name}={value}" for name, value in malloc.items()]
    environment = {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "AWS_MAX_ATTEMPTS": str(PERSISTENT.min_attempts),
        "TOKENIZERS_PARALLELISM": "false",
        "GLIBC_TUNABLES": ":".join(tunables),
        **gpu_visibility(config.gpus_per_worker),
    }
    if config.gpus_per_worker:
        environment[ALLOCATOR] = os.environ.get(ALLOCATOR, "expandable_segments:True")
    return environment
