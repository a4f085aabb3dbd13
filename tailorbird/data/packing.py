"""Pack several tokenized conversations into one row."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    pass

from tailorbird.data.chat_template import Tokens

PACKED_TOKENS, MAX_PADDING = 128, 0.03
"""Width that packed rows aim at, where attention still costs little beside the rest of a model, and the share of
padding that makes them wider and fewer instead."""


@dataclass(frozen=True)
class Packed:
    """Conversations laid end to end in rows of one width [B, T], none of which sees another."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]
    """Counted anew from each conversation's first token."""
    owners: NDArray[np.int64]
    """The conversation that a token belongs to, by its place among those given; -1 is padding."""
    places: NDArray[np.int64]
    """[N] flat places in [B, T] whose next token is one that the assistant said."""
    targets: NDArray[np.int64]
    """[N] these next tokens."""

    @property
    def target_owners(self) -> NDArray[np.int64]:
        """[N] the conversation of each target."""
        return np.asarray(self.owners.reshape(-1)[self.places])


def packed(rows: Sequence[Tokens], *, pad_id: int) -> Packed:
    """The conversations in rows of about `PACKED_TOKENS`, or in fewer that are evenly filled: `MAX_PADDING` at most."""
    lengths = [len(row) for row in rows]
    num_bins = max(1, min(len(rows), round(sum(lengths) / max(PACKED_TOKENS, *lengths))))
    bins, width = _evenly(lengths, num_bins=num_bins)
    while sum(lengths) < (1 - MAX_PADDING) * width * len(bins):  # a single row has none
        bins, width = _evenly(lengths, num_bins=len(bins) - 1)
    shape = len(bins), width
    input_ids, position_ids = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    owners, learned = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for number, places in enumerate(bins):
        begin = 0
        for place in places:
            row, end = rows[place], begin + len(rows[place])
            input_ids[number, begin:end] = row.ids
            position_ids[number, begin:end] = np.arange(len(row))
            owners[number, begin:end] = place
            learned[number, begin : end - 1] = row.said[1:]
            begin = end
    places_flat = np.flatnonzero(learned.reshape(-1))
    return Packed(input_ids, position_ids, owners, places_flat, input_ids.reshape(-1)[places_flat + 1])


def _evenly(lengths: Sequence[int], *, num_bins: int) -> tuple[list[list[int]], int]:
    """Places of the conversations in each row, and the width of the fullest.

    Each goes, the longest first, into the row with the least in it. Graham, Bounds on multiprocessing timing (1969).
    """
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    filled = [0] * num_bins
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        least = filled.index(min(filled))
        bins[least].append(place)
        filled[least] += lengths[place]
    return bins, max(filled)
