"""Operations that wait for a GPU, because Python reads a value of a tensor, or the size of a result
depends on one."""

import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "_local_scalar_dense",
    "equal",
    "masked_select",
    "nonzero",
    "unique_consecutive",
    "_unique2",
)


class DeviceReads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the place of each read within the block, also those in the backward pass.

    `Tensor.tolist`, `Tensor.numpy` and copies between devices are not noted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.places: list[str] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        indices = args[1] if func.__name__.startswith(("index.", "index_put")) else ()
        by_mask = any(index is not None and index.dtype == torch.bool for index in indices)
        if func.__name__.partition(".")[0] in READS or by_mask:
            self.places.append("".join(traceback.format_stack(limit=8)[:-1]))
        return func(*args, **(kwargs or {}))
