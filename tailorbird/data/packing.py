"""Pack several tokenized conversations into one row."""

import heapq
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.chat_template import Tokens

PACKED_TOKENS = 128
MAX_PADDING = 0.03
"""Target width of packed rows, and share of padding that is accepted. At this width, attention is
cheap compared with the rest of the model. If there is more padding, conversations are packed into
fewer and wider rows."""
MORE_ROWS = 16  # larger numbers of rows that are tried if fewer rows are too wide


@dataclass(frozen=True)
class PackedRows:
    """Conversations packed into rows [B, T]. Tokens attend to their own conversation only."""

    input_ids: NDArray[np.int64]
    position_ids: NDArray[np.int64]  # position within the conversation; 0 for padding
    conversation_ids: NDArray[np.int64]  # conversation index of each token; -1 for padding
    positions: NDArray[np.int64]  # [N] flat positions in [B, T] whose next token is the assistant's
    targets: NDArray[np.int64]  # [N] next token at each of `positions`

    @property
    def bounds(self) -> NDArray[np.int32]:
        """[S + 1] flat positions in [B, T] where a conversation or a token of padding starts, and
        their number."""
        starts = np.flatnonzero(self.position_ids == 0)
        return np.append(starts, self.position_ids.size).astype(np.int32)

    @property
    def longest(self) -> int:
        """Number of tokens of the longest conversation."""
        return int(np.diff(self.bounds).max())

    @property
    def target_conversation_ids(self) -> NDArray[np.int64]:
        """[N] conversation index of each target."""
        return np.asarray(self.conversation_ids.reshape(-1)[self.positions])


def pack(
    rows: Sequence[Tokens], *, pad_id: int, max_width: float = math.inf, one_row: bool = False
) -> PackedRows:
    """Pack conversations into rows of about `PACKED_TOKENS` tokens, or into wider ones to stay
    within `MAX_PADDING`.

    Rows are no wider than `max_width`, or than the longest conversation if that is longer; there is
    then more padding if it cannot be avoided, but no more than with one conversation per row. With
    `one_row`, all conversations are in one row without padding.
    """
    lengths = [len(row) for row in rows]
    if one_row:
        bins, width = _fill_evenly(lengths, num_bins=1)
    else:
        bins, width = _least_padding(lengths, max_width=max(max_width, *lengths))
    shape = len(bins), width
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    conversation_ids = np.full(shape, -1, dtype=np.int64)
    learned = np.zeros(shape, dtype=np.bool_)
    for number, indices in enumerate(bins):
        begin = 0
        for index in indices:
            row = rows[index]
            end = begin + len(rows[index])
            input_ids[number, begin:end] = row.ids
            position_ids[number, begin:end] = np.arange(len(row))
            conversation_ids[number, begin:end] = index
            learned[number, begin : end - 1] = row.assistant_mask[1:]
            begin = end
    positions = np.flatnonzero(learned.reshape(-1))
    return PackedRows(
        input_ids=input_ids,
        position_ids=position_ids,
        conversation_ids=conversation_ids,
        positions=positions,
        targets=input_ids.reshape(-1)[positions + 1],
    )


def _least_padding(lengths: Sequence[int], *, max_width: float) -> tuple[list[list[int]], int]:
    """Return the conversations of each row and the width of the first layout with little padding,
    or of the best."""
    bins = [[index] for index in range(len(lengths))]
    width = max(lengths)
    for num_bins in _row_counts(lengths, max_width=max_width):
        if len(bins) * width <= sum(lengths) / (1 - MAX_PADDING):
            break
        packed, packed_width = _fill_evenly(lengths, num_bins=num_bins)
        if packed_width <= max_width and len(packed) * packed_width < len(bins) * width:
            bins = packed
            width = packed_width
    return bins, width


def _row_counts(lengths: Sequence[int], *, max_width: float) -> Iterator[int]:
    """Yield the numbers of rows to try: those of about `PACKED_TOKENS` or more tokens, then
    narrower rows."""
    total = sum(lengths)
    first = max(1, min(len(lengths), round(total / max(PACKED_TOKENS, *lengths))))
    fewest = max(1, math.ceil(total / max_width))
    yield from range(first, fewest - 1, -1)
    yield from range(first + 1, min(len(lengths), first + MORE_ROWS))


def _fill_evenly(lengths: Sequence[int], *, num_bins: int) -> tuple[list[list[int]], int]:
    """Assign each conversation, longest first, to the row with the fewest tokens (Graham, Bounds on
    multiprocessing timing anomalies, 1969). Return the conversation indices of each row, and the
    width of the widest row."""
    bins: list[list[int]] = [[] for _ in range(num_bins)]
    filled = [(0, number) for number in range(num_bins)]
    for index in sorted(range(len(lengths)), key=lambda index: -lengths[index]):
        tokens, least = filled[0]
        bins[least].append(index)
        heapq.heapreplace(filled, (tokens + lengths[index], least))
    return bins, max(tokens for tokens, _ in filled)
