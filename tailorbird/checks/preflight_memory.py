"""Checks of `tailorbird preflight` on the memory of nodes and GPUs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, product
from typing import Any

from cluster.resources import worker_resources
from tailorbird.checks.doctor import GIB
from tailorbird.checks.preflight_facts import Cluster, PreflightFacts
from tailorbird.checks.result import CheckResult, fault, note, ok
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TASKS
from tailorbird.config.training import TrainingConfig
from training.engine.memory_estimate import ADVICE, BatchShape, WorkerMemory, worker_memory

RAY_KILLS_AT = 0.95  # share of a node's memory in use above which Ray kills workers
SIZES = (
    "method",
    "batch_size",
    "batch_tokens",
    "gradient_checkpointing",
    "lora_r",
    "parameter_dtype",
)
"""Fields of `training` that a sweep may vary and that change the memory of a worker."""
NUM_LISTED = 5


def check_memory(recipe: Recipe, facts: PreflightFacts, cluster: Cluster) -> Iterator[CheckResult]:
    """Check that the workers fit the memory of each node, and one worker fits the memory of a GPU.

    The checks are for the configuration of the sweep that needs the most, with the fewest workers.
    """
    if facts.model is None:
        yield fault(
            "memory",
            "not estimated, because the base model could not be read",
            "fix the fault above",
        )
        return
    training = recipe.training
    probed = [
        (node, cluster.reports[node.id]) for node in cluster.nodes if node.id in cluster.reports
    ]
    batch = BatchShape(
        recipe.data.max_length,
        max_new_tokens=recipe.data.max_new_tokens,
        packed=TASKS[recipe.task].packs_rows,
        autocast=training.gpus_per_worker > 0,
    )
    memory = partial(
        worker_memory, shape=facts.model.shape, batch=batch, num_workers=training.min_workers
    )
    config = max(
        tried_configs(recipe),
        key=lambda config: (memory(config).device_bytes, memory(config).host_bytes),
    )
    needed = memory(config)
    groups = groups_that_fit(recipe, cluster)
    most = recipe.tuning.trials_at_once(room=groups) * training.max_workers
    short: list[str] = []
    for node, report in probed:
        num_workers = min(most, node.total.num_workers(worker_resources(training)))
        free = max(0, report.free_bytes - int((1 - RAY_KILLS_AT) * report.memory_bytes))
        if num_workers * needed.host_bytes > free:
            short.append(f"{node.address} has {_size(free)} free for {num_workers} workers")
    text = f"up to about {_size(needed.host_bytes)} per worker ({_parts(needed.host)})"
    if short:
        yield fault(
            "memory",
            f"{text}; {', '.join(short[:NUM_LISTED])}",
            f"{ADVICE}, or raise training.cpus_per_worker, so that fewer workers share a node",
        )
    elif probed:
        yield ok("memory", f"{text}; every node has enough for its workers")
    else:
        yield note("memory", f"{text}; no node reported its memory")
    if needed.device:
        sizes = list(chain.from_iterable(report.gpu_bytes for _, report in probed))
        yield _gpu_memory(needed, sizes)


def groups_that_fit(recipe: Recipe, cluster: Cluster) -> int:
    """Return how many trainings the cluster's CPUs have room for at the same time, at least 1."""
    training = recipe.training
    cpus = int(sum(node.total.cpus for node in cluster.nodes))
    return max(1, cpus // (training.max_workers * training.cpus_per_worker))


def _gpu_memory(needed: WorkerMemory, sizes: Sequence[int]) -> CheckResult:
    text = f"up to about {_size(needed.device_bytes)} per GPU ({_parts(needed.device)})"
    if not sizes:
        return note(
            "GPU memory",
            f"{text}; the nodes did not report the memory of their GPUs (check with nvidia-smi on "
            "the nodes)",
        )
    text += f"; the smallest has {_size(min(sizes))}"
    if needed.device_bytes <= min(sizes):
        return ok("GPU memory", text)
    return fault("GPU memory", text, ADVICE)


def tried_configs(recipe: Recipe) -> list[TrainingConfig]:
    """Return the training config for each combination of values of `SIZES` in the search space."""
    space = recipe.tuning.space
    varied: dict[str, Any] = {
        name: space[name].choice for name in SIZES if name in space and space[name].choice
    }
    plain = recipe.training.model_dump()
    combinations = product(*varied.values())
    return [
        TrainingConfig.model_validate(plain | dict(zip(varied, values, strict=True)))
        for values in combinations
    ]


def _parts(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {_size(size)}" for name, size in parts.items() if size >= GIB // 100)


def _size(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"
