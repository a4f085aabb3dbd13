"""Sharpness-aware minimization (Foret et al., ICLR 2021): a step's gradient from where the loss is highest nearby."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.utils import get_total_norm


@contextmanager
def ascended(parameters: Iterable[torch.nn.Parameter], *, radius: float) -> Iterator[None]:
    """While the block goes on, parameters that have gradients lie `radius` up these, as one vector; their gradients are
    cleared, for those that are computed there. Afterwards the parameters are what they were."""
    moved = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    step = radius / (get_total_norm(gradients) + 1e-12)
    with torch.no_grad():
        for parameter, gradient in zip(moved, gradients, strict=True):
            parameter.add_(gradient * step)
            parameter.grad = None
    gradients.clear()  # else they would be held beside those of the block
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)
