"""Tokenized training rows, as lists and as flat arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.chat_template import Tokens
from tailorbird.data.tokenize import label_indices

RowIndices = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class TokenLists:
    """Token ids of N rows with their targets."""

    ids: list[list[int]]
    assistant_masks: list[NDArray[np.bool_]] | None = None
    """(chat only) For each row, True for tokens of the assistant."""
    labels: tuple[str, ...] | None = None  # (classification only) [N] labels


@dataclass(frozen=True)
class TokenizedRows:
    """Tokens of N training rows, concatenated in one array. Lists would take ten times the
    memory."""

    row_ids: tuple[str, ...]
    ids: NDArray[np.int32]  # [T] token ids of all rows
    offsets: NDArray[np.int64]  # [N + 1] start of each row in `ids`, and the end of the last
    assistant_mask: NDArray[np.bool_] | None = None
    """(chat only) [T] True for tokens of the assistant."""
    labels: NDArray[np.int64] | None = None  # (classification only) [N] class indices

    @classmethod
    def from_lists(
        cls, row_ids: tuple[str, ...], tokens: TokenLists, *, classes: Sequence[str]
    ) -> Self:
        """Concatenate lists; raise DataError for a label that is not in `classes`."""
        offsets = offsets_of([len(ids) for ids in tokens.ids])
        flat = np.fromiter(chain.from_iterable(tokens.ids), dtype=np.int32, count=int(offsets[-1]))
        mask = labels = None
        if tokens.assistant_masks is not None:
            mask = np.concatenate(tokens.assistant_masks)
        if tokens.labels is not None:
            labels = label_indices(tokens.labels, classes=classes)
        return cls(row_ids, flat, offsets, assistant_mask=mask, labels=labels)

    def __len__(self) -> int:
        return len(self.row_ids)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[N] number of tokens of each row."""
        return np.diff(self.offsets)

    def tokens(self, rows: RowIndices) -> list[list[int]]:
        """Return the token ids of these rows."""
        return [self.ids[self.offsets[row] : self.offsets[row + 1]].tolist() for row in rows]

    def conversations(self, rows: RowIndices) -> list[Tokens]:
        """(chat only) Return these rows with their assistant masks."""
        assert self.assistant_mask is not None
        masks = [self.assistant_mask[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        return [Tokens(ids, mask) for ids, mask in zip(self.tokens(rows), masks, strict=True)]

    def num_assistant_tokens(self, rows: RowIndices) -> int:
        """(chat only) Return the number of assistant tokens in these rows."""
        return int(self._assistant_tokens[rows].sum())

    @cached_property
    def _assistant_tokens(self) -> NDArray[np.int64]:
        assert self.assistant_mask is not None
        return np.diff(offsets_of(self.assistant_mask)[self.offsets])


def concat_tokenized(parts: Sequence[TokenizedRows]) -> TokenizedRows:
    """Return the rows of all parts, which must be of one task."""
    masks = [part.assistant_mask for part in parts if part.assistant_mask is not None]
    labels = [part.labels for part in parts if part.labels is not None]
    return TokenizedRows(
        row_ids=tuple(chain.from_iterable(part.row_ids for part in parts)),
        ids=np.concatenate([part.ids for part in parts]),
        offsets=offsets_of(np.concatenate([part.lengths for part in parts])),
        assistant_mask=np.concatenate(masks) if masks else None,
        labels=np.concatenate(labels) if labels else None,
    )


def offsets_of(lengths: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return `TokenizedRows.offsets` for rows of these lengths."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
