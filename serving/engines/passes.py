"""Division of texts into forward passes, by the costs of the device."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.length_batches import length_batches, pass_cost


class PassCosts(NamedTuple):
    """The costs of forward passes on a kind of device, in tokens, padding included."""

    fixed: int
    """Cost of a pass in addition to that of its tokens. Only the order of magnitude matters."""
    alone: int
    """Maximum size of a pass. A request that arrives waits for the end of the pass."""
    share: int
    """Maximum part of one client in a pass while there are several clients, which wait for each
    other's passes. Smaller passes make the wait shorter, and have a larger share of fixed costs."""
    tokenized_bytes: int
    """Maximum number of bytes to tokenize before a pass, in UTF-8. A core tokenizes about 4 bytes
    per microsecond, and the device waits. Further texts wait for a later pass."""


# Measured: a six-layer encoder on one core takes about 5 ms per pass and 0.13 to 0.22 ms per token.
CPU = PassCosts(fixed=50, alone=1024, share=128, tokenized_bytes=16_384)
# Not measured: on a GPU, a pass is assumed to take as long as one of 2,048 tokens until it has
# more. A pass of the maximum size can be tokenized at once.
GPU = PassCosts(fixed=2048, alone=65_536, share=8192, tokenized_bytes=262_144)


def pass_costs(device: str) -> PassCosts:
    """Return the costs on a torch device type, such as `cpu` or `cuda`."""
    if device == "cpu":
        return CPU
    return GPU


def first_pass(
    lengths: Sequence[int], *, max_rows: int, costs: PassCosts, max_tokens: int
) -> NDArray[np.int64]:
    """Return the rows of the pass that contains row 0, when all rows are divided into passes at the
    lowest cost."""
    cost = pass_cost(max_tokens=max_tokens, fixed=costs.fixed, per_token=1)
    batches = length_batches(lengths, max_rows=max_rows, cost=cost)
    return next(batch for batch in batches if 0 in batch)
