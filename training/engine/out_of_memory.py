"""Report that a GPU does not have enough memory, with changes of the recipe that need less."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from tailorbird.config.training import TrainingConfig
from training.engine.memory_alternatives import remedy, smaller_alternatives
from training.engine.memory_estimate import worker_memory
from training.engine.worker_memory import WorkerMemory
from training.errors import OutOfMemory
from training.task import TaskRuntime


@contextmanager
def out_of_memory_reported(config: TrainingConfig, runtime: TaskRuntime) -> Iterator[None]:
    """Raise OutOfMemory, with advice, if the block runs out of GPU memory."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        text, _, _ = str(error).partition(". GPU ")  # the rest describes the allocator
        message = f"{text}; {_advice(config, runtime)}"
        raise OutOfMemory(message, dist.get_world_size()) from None  # without the tensors of its traceback


def _advice(config: TrainingConfig, runtime: TaskRuntime) -> str:
    """Return the changes after which a worker is estimated to need less than now, and to fit its GPU if possible."""

    def needed(memory: WorkerMemory) -> int:
        return memory.device_bytes if config.gpus_per_worker else memory.host_bytes

    shape, batch = runtime.sizes(config)
    num_workers = dist.get_world_size()
    gpu_bytes = torch.cuda.mem_get_info()[1] if torch.cuda.is_available() else None
    now = needed(worker_memory(config, shape=shape, batch=batch, num_workers=num_workers, gpu_bytes=gpu_bytes))
    alternatives = smaller_alternatives(config, shape=shape, batch=batch, num_workers=num_workers, gpu_bytes=gpu_bytes)
    return remedy(alternatives, needed=needed, allowed=min(now - 1, gpu_bytes or now))
