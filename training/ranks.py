"""Values that the ranks of a worker group exchange. Every rank must call each function."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from tailorbird.models.pretrained import default_device

T = TypeVar("T")


def gather(value: Any) -> list[Any]:
    """Return the values of all ranks, on every rank."""
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def from_rank_0(value: T) -> T:
    """Return rank 0's value on every rank."""
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def means_over_ranks(*values: float) -> list[float]:
    """Return the mean of each value over the ranks, on every rank."""
    if dist.get_world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=default_device())
    dist.all_reduce(tensor)
    totals: list[float] = tensor.tolist()
    return [total / dist.get_world_size() for total in totals]


def any_rank(condition: bool) -> bool:
    """Return True on every rank if the condition holds on one of them."""
    return means_over_ranks(float(condition))[0] > 0


def raise_on_all_ranks(function: Callable[[], T], kind: type[Exception]) -> T:
    """Return the result of a function, or raise an error of this kind on all ranks if one raises
    it.

    Otherwise the other ranks would wait for that rank in their next collective until the process
    group's time-out.
    """
    message = None
    result: Any = None
    try:
        result = function()
    except kind as error:
        message = str(error)
    for text in gather(message):
        if text is not None:
            raise kind(text)
    value: T = result
    return value
