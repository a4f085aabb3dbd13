"""Token lengths of a sample, counted with a tokenizer or estimated from words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tailorbird.data.chat_template import conversation_tokens
from tailorbird.data.profiling.sample import spread
from tailorbird.data.rows import Conversation, text_of
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
    answer_p99: int  # (chat only) 99th percentile of the same; otherwise 0
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
        answers = [_estimate(turns[-1][1]) + 1 for turns in sample]
        whole = [_estimate(text_of(turns)) + TURN_TOKENS for turns in sample]
        return _lengths(whole, answers, counted=False)
    whole = []
    answers = []
    for *prompt, (_, answer) in sample:
        tokens = conversation_tokens(tuple(prompt), answer, tokenizer=tokenizer, system=None)
        whole.append(len(tokens))
        answers.append(_answer_length(tokens.assistant_mask))
    return _lengths(whole, answers, counted=True)


def _answer_length(assistant_mask: np.ndarray) -> int:
    """Return the number of tokens of the last assistant turn, which ends the conversation."""
    prompt = np.flatnonzero(~assistant_mask)
    return len(assistant_mask) - (int(prompt[-1]) + 1 if len(prompt) else 0)


def _estimate(text: str) -> int:
    return int(np.ceil(len(text.split()) * TOKENS_PER_WORD))


def _lengths(whole: Sequence[int], answers: Sequence[int], *, counted: bool) -> TokenLengths:
    return TokenLengths(
        mean=float(np.mean(whole)),
        median=_percentile(whole, 50),
        p99=_percentile(whole, 99),
        answer_mean=float(np.mean(answers or [0])),
        answer_p99=_percentile(answers or [0], 99),
        counted=counted,
    )


def _percentile(values: Sequence[int], percent: float) -> int:
    return int(np.ceil(np.percentile(values, percent)))
