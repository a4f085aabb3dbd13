"""The state of answers whose tokens follow a grammar."""

import time
from collections.abc import Callable, Sequence

import torch

from tailorbird.models.grammar.compiler import FormatError, Grammar

MAX_MASK_S = 0.5
"""Maximum processor time to find the allowed tokens at a position; 0.1 ms is usual. It is checked
after the position, during which no other answer of the batch grows, so grammars are tried before
they are used."""
TOO_SLOW = (
    "finding the tokens that the schema allows takes too long; reduce the alternatives that start "
    "with the same text"
)
NOT_FOLLOWED = (
    "the model generated a token that the format does not allow, which happens if its scores are "
    "not numbers"
)
NO_TOKEN = "the model's tokenizer has no token with which an answer in this format can continue"


class AnswerMatcher:
    """The grammar state of one answer."""

    def __init__(
        self,
        grammar: Grammar,
        *,
        max_mask_s: float = MAX_MASK_S,
        clock: Callable[[], float] = time.thread_time,
    ) -> None:
        import xgrammar

        self._grammar = grammar
        self._matcher = xgrammar.GrammarMatcher(grammar.compiled)
        self._words = xgrammar.allocate_token_bitmask(1, grammar.compiled.tokenizer_info.vocab_size)
        self._max_mask_s = max_mask_s
        self._clock = clock
        self._fault: str | None = None
        self._first: int | None = None
        self._num_accepted = 0

    def next_position(self, position: int) -> int:
        """Return the position of the first token to accept, of a sequence whose next token is at
        `position`.

        The first call sets the start of the answer: until then, all tokens belong to the prompt.
        """
        if self._first is None:
            self._first = position
        return self._first + self._num_accepted

    def constrain(self, scores: torch.Tensor, tokens: Sequence[int]) -> None:
        """Accept the tokens since the last call, and set the scores [V] of tokens that cannot
        follow to -inf.

        If that fails, only the end-of-turn token remains; `require_usable` then raises the error.
        """
        for token in tokens:
            self._num_accepted += 1
            if not self._matcher.is_terminated() and not self._matcher.accept_token(token):
                self._fault = NOT_FOLLOWED
        allowed = self._allowed(len(scores), scores.device)
        scores.masked_fill_(~allowed, -torch.inf)

    def require_usable(self) -> None:
        """Raise FormatError if the answer ended because of its format, and RuntimeError if because
        of its scores."""
        if self._fault == NOT_FOLLOWED:
            raise RuntimeError(NOT_FOLLOWED)
        if self._fault is not None:
            raise FormatError(self._fault)

    def _allowed(self, vocab_size: int, device: torch.device) -> torch.Tensor:
        """Return the tokens that can follow, as booleans [V]."""
        only_end = torch.zeros(vocab_size, dtype=torch.bool, device=device)
        only_end[self._grammar.end_id] = True
        if self._matcher.is_terminated():
            return only_end
        self._fault = self._fault or self._grammar.fault
        if self._fault is not None:
            return only_end
        started = self._clock()
        is_limited = self._matcher.fill_next_token_bitmask(self._words)
        if self._clock() - started > self._max_mask_s:
            self._fault = TOO_SLOW
            if not self._grammar.is_version_format:
                self._grammar.fault = TOO_SLOW
            return only_end
        if not is_limited:
            return torch.ones(vocab_size, dtype=torch.bool, device=device)
        words = self._words[0].to(device)
        bits = (words[:, None] >> torch.arange(32, dtype=torch.int32, device=device)) & 1
        allowed = torch.zeros(vocab_size, dtype=torch.bool, device=device)  # logits can be padded
        known = bits.flatten()[:vocab_size].bool()
        allowed[: len(known)] = known
        if not bool(allowed.any()):
            self._fault = NO_TOKEN
            return only_end
        return allowed
