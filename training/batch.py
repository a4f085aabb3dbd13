"""One micro-batch of rows."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Collated rows: the inputs of the model, and what its outputs are compared with."""

    inputs: tuple[Tensor | int | None, ...]
    targets: Tensor
    num_tokens: int  # computed tokens, including padding

    def pinned(self) -> "Batch":
        """Return the batch in page-locked memory, from which a GPU copies while it computes."""
        inputs = tuple(
            value.pin_memory() if isinstance(value, Tensor) else value for value in self.inputs
        )
        return Batch(inputs, self.targets.pin_memory(), self.num_tokens)

    def to(self, device: Any) -> "Batch":
        """Return the batch on a device. A pinned batch is copied without waiting."""
        inputs = tuple(
            value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
            for value in self.inputs
        )
        return Batch(inputs, self.targets.to(device, non_blocking=True), self.num_tokens)
