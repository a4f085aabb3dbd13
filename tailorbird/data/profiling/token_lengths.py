"""Before there is a recipe: how many tokens a sample's rows have, counted by a tokenizer or reckoned from words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.rows import Conversation
from tailorbird.data.tokenize import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_A_WORD, MARKS = 1.6, 2
"""Where no tokenizer is at hand: of everyday English 1.3, of medicine 1.7; and a mark at each end of a text."""
TURN_MARKS = 40
"""The same of a conversation, with the system message that its template may write."""
NUM_MEASURED = 2000
"""Rows, spread over all, whose tokens are counted."""
ANY_LENGTH = 1 << 20


@dataclass(frozen=True)
class TokenLengths:
    """Tokens of rows."""

    median: int
    p99: int
    """Of 99 rows of 100 at most so many."""
    answer_p99: int
    """The same of a chat task's answers alone, their end included; 0 of a classification."""
    counted: bool
    """Whether a tokenizer counted them."""


def text_lengths(texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase | None") -> TokenLengths:
    """Of texts that are classified."""
    some = _spread(texts)
    if tokenizer is None:
        return _lengths([_reckoned(text) + MARKS for text in some], [], counted=False)
    tokens = encode_texts(some, tokenizer=tokenizer, max_length=ANY_LENGTH)
    return _lengths([len(row) for row in tokens], [], counted=True)


def conversation_lengths(
    conversations: Sequence[Conversation], *, tokenizer: "PreTrainedTokenizerBase | None"
) -> TokenLengths:
    """Of conversations that end with an answer; raises DataError where the tokenizer's template refuses one."""
    some = _spread(conversations)
    if tokenizer is None:
        sizes = [[_reckoned(content) for _, content in conversation] for conversation in some]
        return _lengths([sum(row) + TURN_MARKS for row in sizes], [row[-1] + 1 for row in sizes], counted=False)
    found = [conversation_tokens(one[:-1], one[-1][1], tokenizer=tokenizer, system=None) for one in some]
    said = [_last_run(tokens.assistant_mask) for tokens in found]
    return _lengths([len(tokens) for tokens in found], said, counted=True)


def _last_run(said: np.ndarray) -> int:
    """Tokens of the last turn that the assistant said, with which a conversation ends."""
    others = np.flatnonzero(~said)
    return len(said) - 1 - int(others[-1]) if len(others) else len(said)


def _spread(rows: Sequence[object]) -> list:  # type: ignore[type-arg]
    places = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), NUM_MEASURED)).astype(np.int64))
    return [rows[place] for place in places]


def _reckoned(text: str) -> int:
    return int(np.ceil(len(text.split()) * TOKENS_A_WORD))


def _lengths(whole: Sequence[int], answers: Sequence[int], *, counted: bool) -> TokenLengths:
    def share(values: Sequence[int], percent: float) -> int:
        return int(np.ceil(np.percentile(values, percent))) if len(values) else 0

    return TokenLengths(share(whole, 50), share(whole, 99), share(answers, 99), counted)
