"""The device on which an evaluation runs its models, and the dtypes that it computes in
hardware."""

import torch

from tailorbird.models.pretrained import cpu_supports_bfloat16, default_device


class DeviceError(ValueError):
    """An evaluation that needs a GPU runs in a process without one."""


def evaluation_device(*, on_gpu: bool) -> str:
    """Return the device of an evaluation: this process' GPU if it has one, else the CPU.

    `on_gpu` is true if replicas have GPUs. Raises DeviceError if this process then has none,
    because predictions and costs on a CPU would not be those of the service.
    """
    device = default_device()
    if on_gpu and device == "cpu":
        raise DeviceError(
            f"serving.gpus_per_replica is set, but torch {torch.__version__} finds no GPU in this "
            "Ray task; run on a cluster with GPUs and a CUDA build of torch, or set "
            "serving.gpus_per_replica to 0"
        )
    return device


def emulates(dtype: str, *, device: str) -> bool:
    """Return True if the device computes a dtype only by emulation, which is slow.

    Models always run in the dtype of their version. Emulated results equal those of other devices
    up to rounding.
    """
    if dtype != "bfloat16":
        return False
    if device == "cpu":
        return not cpu_supports_bfloat16()
    return not torch.cuda.is_bf16_supported(including_emulation=False)
