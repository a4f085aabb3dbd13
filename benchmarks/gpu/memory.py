"""Peak memory of rank 0 of a large group, compared with `training.engine.memory_estimate`.

The group is torch's fake process group: its collectives return at once and move no data. Each rank has the memory of a
real training, but its numbers mean nothing.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu.models import LLAMA_8B, LLAMA_TINY, saved_model, training_task
from benchmarks.training.trainer import RANK_VARIABLES
from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.tasks import ChatData
from tailorbird.models.metadata import read_metadata
from tailorbird.models.pretrained import inference_dtype
from training.engine.deepspeed_private import destroy_engine
from training.engine.memory_estimate import RUNTIME_BYTES, Batch, held_bytes, step_bytes
from training.loop import Callbacks, build_engine, train
from training.task import Diverged, TrainingTask

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class StageMemory:
    """Peak memory of a worker at a ZeRO stage, in bytes."""

    zero_stage: int
    estimated: float
    measured: float | None  # None if the estimate does not fit on the GPU


def measure_stages(folder: Path, world_size: int, reduced: bool) -> Iterator[StageMemory]:
    """Yield the peak memory of one step of full training at each stage, on rank 0 of `world_size`.

    On a CPU only stage 3 is measured, because a process does not return the memory of a stage.
    """
    base_model = saved_model(folder, "chat", LLAMA_TINY if reduced else LLAMA_8B)
    os.environ.update(RANK_VARIABLES | {"WORLD_SIZE": str(world_size)})
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    task = training_task(base_model, "chat", num_rows=world_size, num_tokens=64 if reduced else 2048)
    for stage in (3,) if reduced else (1, 2, 3):
        config = TrainingConfig(
            num_workers=world_size,
            gpus_per_worker=0 if reduced else 1,
            zero_stage=stage,  # type: ignore[arg-type]
            epochs=1,
            batch_size=world_size,
            gradient_checkpointing=True,
        )
        estimated = _estimate(config, task)
        fits = reduced or estimated < torch.cuda.get_device_properties(0).total_memory
        yield StageMemory(stage, estimated, _peak_bytes(config, task) if fits else None)
    dist.destroy_process_group()


def _estimate(config: TrainingConfig, task: TrainingTask) -> float:
    """Return the estimated peak bytes of a step, without validation: of the GPU without the CUDA context, or of the
    process on a CPU."""
    shape = read_metadata(task.base_model, task=ChatData()).shape
    batch = Batch(task.max_length, packed=True, autocast=inference_dtype() == torch.bfloat16)
    num_workers = config.max_workers
    held = held_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    step = step_bytes(config, shape=shape, batch=batch, num_workers=num_workers)
    process = 0 if config.gpus_per_worker else RUNTIME_BYTES
    return float(process + sum(held.values()) + sum(step.values()))


def _peak_bytes(config: TrainingConfig, task: TrainingTask) -> float:
    """Return the peak of one step, with the loading of the model."""
    _reset_peak()
    runtime = task.load_runtime()
    engine = build_engine(config, runtime)

    def on_step(_: StepEvent) -> None:
        raise _Measured

    # Parameters that are gathered by the fake group are uninitialized, so the loss may not be finite.
    with suppress(_Measured, Diverged):
        train(engine, config, runtime=runtime, callbacks=Callbacks(on_step=on_step))
    peak = _peak()
    destroy_engine(engine)
    del engine, runtime
    gc.collect()
    return peak


class _Measured(Exception):
    """The step is over; the validation is not needed."""


def _reset_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    else:
        CLEAR_REFS.write_text("5")  # resets the peak of the resident memory


def _peak() -> float:
    if torch.cuda.is_available():
        return float(torch.cuda.max_memory_allocated())
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    return 1024.0 * int(line.split()[1])
