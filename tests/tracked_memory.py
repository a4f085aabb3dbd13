"""Exact memory of the tensors that a process holds, at each moment of a block of code."""

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class TrackedMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations return within the block, until they are
    freed.

    The backward pass counts too. Memory that a kernel uses internally does not, and neither do the
    tensors of other threads and the weights of `shared`.
    """

    def __init__(self, shared: nn.Module | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = self.peak = 0
        self._shared: set[int] = set()
        self._known: set[int] = set()
        if shared is not None:
            self.share(shared)

    def share(self, module: nn.Module) -> None:
        """Do not count the weights of a module, for example because they are mapped from a file."""
        for value in module.parameters():
            storage = value.untyped_storage()
            self._remove(storage._cdata, storage.nbytes())
            self._shared.add(storage._cdata)

    def reset_peak(self) -> int:
        """Return the peak since the last call, and start a new one."""
        peak, self.peak = self.peak, self.bytes
        return peak

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, torch.Tensor) and value.device.type != "meta":
                self._add(value.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known or key in self._shared:
            return
        self._known.add(key)
        size = storage.nbytes()
        self.bytes += size
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        if key in self._known:
            self._known.remove(key)
            self.bytes -= size
