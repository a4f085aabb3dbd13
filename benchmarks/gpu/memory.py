"""Peak memory of rank 0 of a large group, compared with `training.engine.memory_estimate`.

The group is torch's fake process group: its collectives return at once and move no data. Each rank
has the memory of a real training, but its numbers mean nothing.
"""

import gc
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.gpu.models import LLAMA_8B, LLAMA_TINY, saved_model, training_task
from benchmarks.gpu.report import Failed
from benchmarks.training.trainer import RANK_VARIABLES
from cluster.progress import StepEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.data.task_data import ChatData
from tailorbird.models.metadata import read_metadata
from tailorbird.models.pretrained import inference_dtype
from tailorbird.models.shape import ModelShape
from training.engine.deepspeed_private import destroy_engine
from training.engine.memory_estimate import GPU_PROCESS_BYTES, Batch, worker_memory
from training.loop import Callbacks, build_engine, train
from training.task import Diverged, TrainingTask

NUM_STEPS = 2  # the moments of the optimizer exist from the end of the first step
NUM_TOKENS, REDUCED_NUM_TOKENS = 2048, 64
GIB = 2**30
STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure_stages(folder: Path, world_size: int, reduced: bool) -> Iterator[dict[str, float]]:
    """Yield the estimated and measured peak of start and step of full training at each stage, on
    rank 0 of a group.

    The parameters are fp32, or bf16 at a stage at which fp32 does not fit on the GPU by the
    estimate. On a CPU only stage 3 is measured, because a process does not return the memory of a
    stage.
    """
    base_model = saved_model(folder, "chat", LLAMA_TINY if reduced else LLAMA_8B)
    os.environ.update(RANK_VARIABLES | {"WORLD_SIZE": str(world_size)})
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=world_size)
    num_tokens = REDUCED_NUM_TOKENS if reduced else NUM_TOKENS
    task = training_task(base_model, "chat", num_rows=NUM_STEPS * world_size, num_tokens=num_tokens)
    shape = read_metadata(base_model, task=ChatData()).shape
    room = (
        math.inf
        if reduced
        else torch.cuda.get_device_properties(0).total_memory - GPU_PROCESS_BYTES
    )
    for stage in (3,) if reduced else (1, 2, 3):
        config = config_that_fits(
            stage, world_size, shape=shape, room=room, gpus_per_worker=0 if reduced else 1
        )
        estimated = estimated_bytes(config, shape=shape)
        figures = {"estimate_gib": estimated / GIB}
        name = f"memory_{world_size}_ranks_stage_{stage}_{config.parameter_dtype}"
        if estimated < room:
            measured = _peak_bytes(config, task)
            figures |= {"gib": measured / GIB, "share_of_estimate": measured / estimated}
        else:
            print(
                f"{name}: the estimate does not fit on this GPU, so it is not measured", flush=True
            )
        yield {f"{name}_{figure}": value for figure, value in figures.items()}
    dist.destroy_process_group()


def config_that_fits(
    stage: int, world_size: int, *, shape: ModelShape, room: float, gpus_per_worker: int = 1
) -> TrainingConfig:
    """Return a config for full training with fp32 parameters or, if its estimated bytes exceed
    `room`, with bf16."""

    def config(parameter_dtype: str) -> TrainingConfig:
        return TrainingConfig.model_validate(
            {
                "num_workers": world_size,
                "gpus_per_worker": gpus_per_worker,
                "zero_stage": stage,
                "parameter_dtype": parameter_dtype,
                "epochs": 1,
                "batch_size": world_size,
                "gradient_checkpointing": True,
            }
        )

    in_fp32 = config("fp32")
    return in_fp32 if estimated_bytes(in_fp32, shape=shape) < room else config("bf16")


def estimated_bytes(config: TrainingConfig, *, shape: ModelShape) -> float:
    """Return the estimated peak bytes: of the GPU without the CUDA context, or of a process on
    CPU."""
    on_gpu = config.gpus_per_worker > 0
    autocast = on_gpu or inference_dtype() == torch.bfloat16
    batch = Batch(NUM_TOKENS if on_gpu else REDUCED_NUM_TOKENS, packed=True, autocast=autocast)
    memory = worker_memory(config, shape=shape, batch=batch, num_workers=config.max_workers)
    return float(memory.device_bytes - GPU_PROCESS_BYTES if on_gpu else memory.host_bytes)


def _peak_bytes(config: TrainingConfig, task: TrainingTask) -> float:
    """Return the peak of `NUM_STEPS` steps, with the loading of the model.

    Raises Failed if fewer steps ran, or if the optimizer skipped one because of gradients that are
    not finite.
    """
    _reset_peak()
    runtime = task.load_runtime()
    engine = build_engine(config, runtime)

    def on_step(event: StepEvent) -> None:
        if event.step == event.num_steps:
            raise _Measured

    # A gather of the fake group copies this rank's part to the others': losses are finite, but not
    # those of the model.
    with suppress(_Measured, Diverged):
        train(engine, config, runtime=runtime, callbacks=Callbacks(on_step=on_step))
    peak = _peak()
    if (engine.global_steps, engine.skipped_steps) != (NUM_STEPS, 0):  # the moments may not exist
        steps = (
            f"{engine.global_steps} of {NUM_STEPS} steps ran, and the optimizer skipped "
            f"{engine.skipped_steps}"
        )
        raise Failed(f"the peak with the optimizer's moments was not measured: {steps}")
    destroy_engine(engine)
    del engine, runtime
    gc.collect()
    return peak


class _Measured(Exception):
    """The steps are over; the validation is not needed."""


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
