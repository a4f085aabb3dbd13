"""Token lengths of a sample, counted with a tokenizer or estimated from words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.profiling.sample import spread
from tailorbird.data.rows import Conversation
from tailorbird.data.tokenize import encode_texts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TOKENS_PER_WORD = 1.6
SPECIAL_TOKENS = 2
"""Estimates without a tokenizer. Everyday English has 1.3 tokens per word, medical English 1.7."""
# estimate for special tokens and a system message that the template may add to a conversation
TURN_TOKENS = 40
UNLIMITED = 1 << 20


@dataclass(frozen=True)
class TokenLengths:
    """Mean, median and 99th percentile of the number of tokens per row."""

    mean: float
    median: int
    p99: int
    answer_mean: float  # (chat only) mean of the answers with their end-of-turn token; otherwise 0
    answer_p99: (
        int  # (chat only) 99th percentile of the answers with their end-of-turn token; otherwise 0
    )
    counted: bool  # False if the lengths are estimated


def text_lengths(
    texts: Sequence[str], *, tokenizer: "PreTrainedTokenizerBase | None", prompt: str = ""
) -> TokenLengths:
    """Return the token lengths of texts, each after the prompt. Estimates are without it."""
    sample = spread(texts)
    if tokenizer is None:
        return _lengths([_estimate(text) + SPECIAL_TOKENS for text in sample], [], counted=False)
    tokens = encode_texts(sample, tokenizer=tokenizer, max_length=UNLIMITED, prompt=prompt)
    return _lengths([len(row) for row in tokens], [], counted=True)


def conversation_lengths(
    conversations: Sequence[Conversation], *, tokenizer: "PreTrainedTokenizerBase | None"
) -> TokenLengths:
    """Return the token lengths of conversations that end with an answer.

    Raises DataError if the chat template rejects a conversation.
    """
    sample = spread(conversations)
    if tokenizer is None:
        sizes = [[_estimate(content) for _, content in conversation] for conversation in sample]
        return _lengths(
            [sum(row) + TURN_TOKENS for row in sizes], [row[-1] + 1 for row in sizes], counted=False
        )
    tokens = [
        conversation_tokens(turns[:-1], turns[-1][1], tokenizer=tokenizer, system=None)
        for turns in sample
    ]
    return _lengths(
        [len(row) for row in tokens],
        [_answer_length(row.assistant_mask) for row in tokens],
        counted=True,
    )


def _answer_length(assistant_mask: np.ndarray) -> int:
    """Return the number of tokens of the last assistant turn, which ends the conversation."""
    others = np.flatnonzero(~assistant_mask)
    if len(others):
        return len(assistant_mask) - 1 - int(others[-1])
    return len(assistant_mask)


def _estimate(text: str) -> int:
    return int(np.ceil(len(text.split()) * TOKENS_PER_WORD))


def _lengths(whole: Sequence[int], answers: Sequence[int], *, counted: bool) -> TokenLengths:
    def share(values: Sequence[int], percent: float) -> int:
        if len(values):
            return int(np.ceil(np.percentile(values, percent)))
        return 0

    def mean(values: Sequence[int]) -> float:
        if len(values):
            return float(np.mean(values))
        return 0.0

    return TokenLengths(
        mean(whole), share(whole, 50), share(whole, 99), mean(answers), share(answers, 99), counted
    )
