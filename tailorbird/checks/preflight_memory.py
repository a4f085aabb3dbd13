"""Checks of `tailorbird preflight` on the memory of nodes and GPUs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from cluster.resources import worker_resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight_facts import Cluster, PreflightFacts
from tailorbird.checks.result import CheckResult, fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape
from training.engine.memory_alternatives import remedy, smaller_alternatives
from training.engine.memory_estimate import worker_memory
from training.engine.worker_memory import Batch, WorkerMemory

RAY_KILLS_AT = 0.95  # share of a node's memory in use above which Ray kills workers
SIZES = (
    "method",
    "batch_size",
    "batch_tokens",
    "gradient_accumulation_steps",
    "gradient_checkpointing",
    "lora_r",
    "parameter_dtype",
)
"""Fields of `training` that a sweep may vary and that change the memory of a worker."""
NUM_LISTED = 5


def check_memory(recipe: Recipe, facts: PreflightFacts, cluster: Cluster) -> Iterator[CheckResult]:
    """Check that the workers fit the memory of each node, and one worker fits the memory of a GPU."""
    if facts.model is None:
        yield fault("memory", "not estimated, because the base model could not be read", "fix the fault above")
        return
    config, total = recipe.training, sum(node.total.cpus for node in cluster.nodes)
    worker = worker_resources(config)
    room = max(1, int(total) // (config.max_workers * config.cpus_per_worker))
    most = recipe.tuning.trials_at_once(room=room) * config.max_workers
    probed = [(node, cluster.reports[node.id]) for node in cluster.nodes if node.id in cluster.reports]
    autocast = any(report.bfloat16 for _, report in probed) or config.gpus_per_worker > 0
    gpu_sizes = [size for _, report in probed for size in report.gpu_bytes]
    gpu_bytes = min(gpu_sizes, default=None)
    estimate = _worst_memory(recipe, facts.model.shape, autocast=autocast, gpu_bytes=gpu_bytes)
    needed = estimate.memory
    short: list[tuple[int, int, str]] = []  # bytes for a worker, number of workers, and text of a node
    for node, report in probed:
        num_workers = min(most, node.total.num_workers(worker))
        allowed = max(0, report.free_bytes - int((1 - RAY_KILLS_AT) * report.memory_bytes))
        if needed.node_bytes(num_workers, num_groups=_num_groups(num_workers, config)) > allowed:
            text = f"{node.address} has {_size(allowed)} free for {num_workers} workers"
            short.append((allowed // num_workers, num_workers, text))
    text = f"up to about {_size(needed.host_bytes)} per worker ({_parts(needed.host)})"
    if needed.exporting != needed.host:
        text += f", and {_size(needed.exporting_bytes)} for the one that exports ({_parts(needed.exporting)})"
    if short:
        allowed, num_workers, _ = min(short)
        groups = _num_groups(num_workers, config)
        advice = estimate.remedy(
            lambda memory: memory.node_bytes(num_workers, num_groups=groups) // num_workers, allowed=allowed
        )
        advice += ", or raise training.cpus_per_worker, so that fewer workers share a node"
        yield fault("memory", f"{text}; {', '.join(text for _, _, text in short[:NUM_LISTED])}", advice)
    elif probed:
        yield ok("memory", f"{text}; every node has enough for its workers")
    else:
        yield note("memory", f"{text}; no node reported its memory")
    if needed.device:
        yield _gpu_memory(estimate, gpu_sizes)


def _num_groups(num_workers: int, config: TrainingConfig) -> int:
    """Return the number of worker groups on a node. One worker of each group exports."""
    return -(-num_workers // config.max_workers)


@dataclass(frozen=True)
class _Estimate:
    """The memory of a worker, and what it depends on."""

    config: TrainingConfig
    shape: ModelShape
    batch: Batch
    gpu_bytes: int | None
    memory: WorkerMemory

    def remedy(self, needed: Callable[[WorkerMemory], int], *, allowed: int) -> str:
        """Return the first change of each field of the recipe with which a worker needs at most `allowed` bytes."""
        alternatives = smaller_alternatives(
            self.config,
            shape=self.shape,
            batch=self.batch,
            num_workers=self.config.min_workers,
            gpu_bytes=self.gpu_bytes,
        )
        return remedy(alternatives, needed=needed, allowed=allowed)


def _gpu_memory(estimate: _Estimate, sizes: Sequence[int]) -> CheckResult:
    needed = estimate.memory.device_bytes
    text = f"up to about {_size(needed)} per GPU ({_parts(estimate.memory.device)})"
    if not sizes:
        return note(
            "GPU memory",
            f"{text}; the nodes did not report the memory of their GPUs (check with nvidia-smi on the nodes)",
        )
    text += f"; the smallest has {_size(min(sizes))}"
    if needed <= min(sizes):
        return ok("GPU memory", text)
    return fault("GPU memory", text, estimate.remedy(lambda memory: memory.device_bytes, allowed=min(sizes)))


def _worst_memory(recipe: Recipe, shape: ModelShape, *, autocast: bool, gpu_bytes: int | None) -> _Estimate:
    """Return the maximum memory of a worker in the sweep; with the fewest workers, each needs the most."""
    batch = Batch(
        _longest_training_row(recipe),
        max_new_tokens=recipe.data.max_new_tokens,
        packed=TASKS[recipe.task].packs_rows,
        autocast=autocast,
    )

    def estimate(config: TrainingConfig) -> _Estimate:
        num_workers = config.min_workers
        memory = worker_memory(config, shape=shape, batch=batch, num_workers=num_workers, gpu_bytes=gpu_bytes)
        return _Estimate(config, shape, batch, gpu_bytes, memory)

    estimates = map(estimate, tried_configs(recipe))
    return max(estimates, key=lambda estimate: (estimate.memory.device_bytes, estimate.memory.host_bytes))


def _longest_training_row(recipe: Recipe) -> int:
    """Return the maximum tokens of a training row, including retrieved examples of at most `data.max_length` each."""
    max_length, evaluation = recipe.data.max_length, recipe.evaluation
    if not recipe.training.with_retrieved:
        return max_length
    return max_length + min(evaluation.retrieved_tokens, max(evaluation.retrieved_examples) * max_length)


def tried_configs(recipe: Recipe) -> list[TrainingConfig]:
    """Return the training config for each combination of values of `SIZES` in the search space."""
    space = recipe.tuning.space
    varied: dict[str, Any] = {name: space[name].choice for name in SIZES if name in space and space[name].choice}
    plain = recipe.training.model_dump()
    combinations = product(*varied.values())
    return [TrainingConfig.model_validate(plain | dict(zip(varied, values, strict=True))) for values in combinations]


def _parts(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size >= GIB // 100)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
