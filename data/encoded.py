"""After encoding: training rows as tokens, as a window that fits in memory, whichever task they are of."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data.chat import Tokens, training_tokens
from data.encode import encode_texts, label_indices
from data.read import Rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """Training rows as tokens, column by column, all of one length."""

    row_ids: tuple[str, ...]
    tokens: list[list[int]]
    said: list[NDArray[np.bool_]] | None = None
    """Of a chat task, which of a row's tokens the assistant said."""
    labels: NDArray[np.int64] | None = None
    """Of a classification, the number of each row's class."""
    auxiliary: NDArray[np.int64] | None = None
    """The same of a second label, where the recipe names one."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.fromiter((len(tokens) for tokens in self.tokens), dtype=np.int64, count=len(self.tokens))

    def conversations(self, rows: Sequence[int] | NDArray[np.int64]) -> list[Tokens]:
        """These rows of a chat task."""
        assert self.said is not None
        return [Tokens(self.tokens[row], self.said[row]) for row in rows]


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
    auxiliary_classes: Sequence[str],
) -> Encoded:
    """Training rows that are held in memory, as tokens; labels by their number among the classes."""
    tokens, said = encoding.tokens(rows, tokenizer=tokenizer)
    return Encoded(
        row_ids=rows.row_ids,
        tokens=tokens,
        said=said,
        labels=None if encoding.chat else label_indices(rows.labels, classes=classes),
        auxiliary=None if rows.auxiliary is None else label_indices(rows.auxiliary, classes=auxiliary_classes),
    )
