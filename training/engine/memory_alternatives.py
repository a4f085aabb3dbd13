"""Changes of a recipe that lower the memory of a training worker."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape
from training.engine.memory_estimate import micro_batch_tokens, worker_memory
from training.engine.worker_memory import Batch, WorkerMemory

GIB = 1 << 30
MAX_LISTED = 5


def remedy(
    alternatives: Iterable[tuple[str, WorkerMemory]], *, needed: Callable[[WorkerMemory], int], allowed: int
) -> str:
    """Return advice with the first change of each field of the recipe after which at most `allowed` bytes are needed.

    `alternatives` are those of `smaller_alternatives`.
    """
    fitting: dict[str, str] = {}
    for change, memory in alternatives:
        if (size := needed(memory)) <= allowed:
            fitting.setdefault(change.partition(":")[0], f"{change} ({size / GIB:.2f} GiB)")
    if not fitting:
        return "use more workers with training.zero_stage: 3, or a smaller base model"
    return f"set {' or '.join(list(fitting.values())[:MAX_LISTED])}"


def smaller_alternatives(
    config: TrainingConfig, *, shape: ModelShape, batch: Batch, num_workers: int, gpu_bytes: int | None = None
) -> Iterator[tuple[str, WorkerMemory]]:
    """Yield changes of the recipe that lower the memory of a worker, each with the memory that it needs then.

    Changes that keep the result of a training come first. The last ones are for all changes together.
    """

    def estimate(config: TrainingConfig, batch: Batch) -> WorkerMemory:
        return worker_memory(config, shape=shape, batch=batch, num_workers=num_workers, gpu_bytes=gpu_bytes)

    changes: list[tuple[str, dict[str, Any]]] = [
        (f"training.zero_stage: {stage}", {"zero_stage": stage})
        for stage in range(config.zero_stage + 1, 4)
        if num_workers > 1
    ]
    if not config.gradient_checkpointing:
        changes.append(("training.gradient_checkpointing: true", {"gradient_checkpointing": True}))
    if config.batch_tokens is None:
        steps = config.batch_size // config.max_workers  # with fewer workers there are proportionally more
        changes.append((f"training.gradient_accumulation_steps: {steps}", {"gradient_accumulation_steps": steps}))
    else:
        num_tokens = micro_batch_tokens(config, batch=batch, num_workers=num_workers)
        while (num_tokens := num_tokens // batch.max_length // 2 * batch.max_length) > 0:
            changes.append((f"training.batch_tokens: {num_tokens}", {"batch_tokens": num_tokens}))
    if config.gpus_per_worker and config.offload == "none":
        changes.append(
            ("training.offload: optimizer", {"offload": "optimizer", "zero_stage": max(1, config.zero_stage)})
        )
    if config.method == "full":
        changes.append(("training.method: lora", {"method": "lora"}))
    now, together = estimate(config, batch), config
    key = "device_bytes" if config.gpus_per_worker else "host_bytes"
    chosen: dict[str, str] = {}  # the last change of each field
    for name, fields in changes:
        changed = estimate(config.model_copy(update=fields), batch)
        if getattr(changed, key) < getattr(now, key):
            yield name, changed
            together = together.model_copy(update=fields)
            chosen[name.partition(":")[0]] = name
    shorter = replace(batch, max_length=batch.max_length // 2)
    yield "half of data.max_length", estimate(config, shorter)
    if len(chosen) > 1:
        yield " with ".join(chosen.values()), estimate(together, batch)
        yield " with ".join([*chosen.values(), "half of data.max_length"]), estimate(together, shorter)
