"""Pack several tokenized conversations into one row."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.chat_template import Tokens

PACKED_TOKENS, MAX_PADDING = 128, 0.03
"""Target width of packed rows, and maximum share of padding. At this width, attention is cheap compared with the rest
of the model. If there is more padding, conversations are packed into fewer and wider rows."""


@dataclass(frozen=True)
class PackedRows:
    """Conversations packed into rows [B, T]. Tokens attend to their own conversation only."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]  # position within the conversation
    conversation_ids: NDArray[np.int64]  # conversation index of each token; -1 for padding
    positions: NDArray[np.int64]  # [N] flat positions in [B, T] whose next token is the assistant's
    targets: NDArray[np.int64]  # [N] next token at each of `positions`

    @property
    def target_conversation_ids(self) -> NDArray[np.int64]:
        """[N] conversation index of each target."""
        return np.asarray(self.conversation_ids.reshape(-1)[self.positions])


def pack(rows: Sequence[Tokens], *, pad_id: int) -> PackedRows:
    """Pack conversations into rows of about `PACKED_TOKENS` tokens, or into wider ones to stay within `MAX_PADDING`."""
    lengths = [len(row) for row in rows]
    num_bins = max(1, min(len(rows), round(sum(lengths) / max(PACKED_TOKENS, *lengths))))
    bins, width = _fill_evenly(lengths, num_bins=num_bins)
    while sum(lengths) < (1 - MAX_PADDING) * width * len(bins):  # ends at one row, which has no padding
        bins, width = _fill_evenly(lengths, num_bins=len(bins) - 1)
    shape = len(bins), width
    input_ids, position_ids = np.full(shape, pad_id, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    conversation_ids, learned = np.full(shape, -1, dtype=np.int64), np.zeros(shape, dtype=np.bool_)
    for number, indices in enumerate(bins):
        begin = 0
        for index in indices:
            row, end = rows[index], begin + len(rows[index])
            input_ids[number, begin:end] = row.ids
            position_ids[number, begin:end] = np.arange(len(row))
            conversation_ids[number, begin:end] = index
            learned[number, begin : end - 1] = row.assistant_mask[1:]
            begin = end
    positions = np.flatnonzero(learned.reshape(-1))
    return PackedRows(input_ids, position_ids, conversation_ids, positions, input_ids.reshape(-1)[positions + 1])


def _fill_evenly(lengths: Sequence[int], *, num_bins: int) -> tuple[list[list[int]], int]:
    """Assign each conversation, longest first, to the row with the fewest tokens (Graham, Bounds on multiprocessing
    timing anomalies, 1969). Return the conversation indices of each row, and the width of the widest row."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    filled = [0] * num_bins
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        least = filled.index(min(filled))
        bins[least].append(index)
        filled[least] += lengths[index]
    return bins, max(filled)
