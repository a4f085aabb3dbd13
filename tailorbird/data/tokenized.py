"""After encoding: training rows as tokens, as a window that fits in memory, whichever task they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.chat_template import Tokens, training_tokens
from tailorbird.data.rows import Rows
from tailorbird.data.tokenize import encode_texts, label_indices

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Places = Sequence[int] | NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """N training rows as tokens. Those of all rows lie end to end in one array: lists take ten times its memory."""

    row_ids: tuple[str, ...]
    ids: NDArray[np.int32]
    """Of all T tokens, row after row."""
    offsets: NDArray[np.int64]
    """[N + 1]: where in `ids` each row begins, and the last one ends."""
    said: NDArray[np.bool_] | None = None
    """[T], of a chat task: which tokens the assistant said."""
    labels: NDArray[np.int64] | None = None
    """[N], of a classification: the number of each row's class."""

    @classmethod
    def of_lists(cls, tokens: Sequence[Sequence[int]], **columns: Any) -> Self:
        """From the token ids of each row; the other columns as they are."""
        offsets = offsets_of([len(row) for row in tokens])
        ids = np.fromiter(chain.from_iterable(tokens), dtype=np.int32, count=int(offsets[-1]))
        return cls(ids=ids, offsets=offsets, **columns)

    def __len__(self) -> int:
        return len(self.row_ids)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """[N]: tokens of each row."""
        return np.diff(self.offsets)

    def tokens(self, rows: Places) -> list[list[int]]:
        """The token ids of these rows."""
        return [self.ids[self.offsets[row] : self.offsets[row + 1]].tolist() for row in rows]

    def conversations(self, rows: Places) -> list[Tokens]:
        """These rows of a chat task."""
        assert self.said is not None
        spoken = [self.said[self.offsets[row] : self.offsets[row + 1]] for row in rows]
        return [Tokens(ids, said) for ids, said in zip(self.tokens(rows), spoken, strict=True)]

    def num_said(self, rows: Places) -> int:
        """Tokens that the assistant said in these rows of a chat task."""
        assert self.said is not None
        return sum(int(self.said[self.offsets[row] : self.offsets[row + 1]].sum()) for row in rows)


@dataclass(frozen=True)
class Encoding:
    """How rows become tokens; a classification if `chat` is false."""

    max_length: int
    chat: bool = False
    system: str | None = None
    """Of a chat task, the system message put before conversations that have none."""

    def tokens(
        self, rows: Rows, *, tokenizer: "PreTrainedTokenizerBase"
    ) -> tuple[list[list[int]], list[NDArray[np.bool_]] | None]:
        """Token ids of each row, cut at `max_length`, and of a chat task which of them were said; raises DataError."""
        if not self.chat:
            return encode_texts(rows.texts, tokenizer=tokenizer, max_length=self.max_length), None
        found = training_tokens(rows, tokenizer=tokenizer, system=self.system, max_length=self.max_length)
        return [row.ids for row in found], [row.said for row in found]


def encode_rows(
    rows: Rows,
    encoding: Encoding,
    *,
    tokenizer: "PreTrainedTokenizerBase",
    classes: Sequence[str],
) -> Encoded:
    """Training rows that are held in memory, as tokens; labels by their number among the classes."""
    tokens, said = encoding.tokens(rows, tokenizer=tokenizer)
    return Encoded.of_lists(
        tokens,
        row_ids=rows.row_ids,
        said=None if said is None else np.concatenate(said),
        labels=None if encoding.chat else label_indices(rows.labels, classes=classes),
    )


def offsets_of(lengths: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
    """`Encoded.offsets` of rows with so many tokens."""
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
