"""Constrain a batch of answers to one grammar, in continuous batching and in the generation of
transformers."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from transformers import LogitsProcessor

from tailorbird.models.attention.transformers_private import (
    ContinuousBatchingLogitsProcessor,
    request_id,
    request_progress,
    tokens_from,
)
from tailorbird.models.grammar.compiler import FormatError, Grammar
from tailorbird.models.grammar.matcher import AnswerMatcher


class MatchedRow(NamedTuple):
    """A row of the scores whose answer follows a grammar."""

    row: int
    matcher: AnswerMatcher
    tokens: list[int]  # that the matcher has not accepted yet

    def constrain(self, scores: torch.Tensor) -> None:
        """Set the scores of tokens that cannot follow to -inf; see `AnswerMatcher.constrain`.
        Shape: [B, V]."""
        self.matcher.constrain(scores[self.row], self.tokens)


def matched_row(row: int, request: Any, *, matcher: AnswerMatcher) -> MatchedRow:
    """Return the row of a request in a pass of continuous batching."""
    _, position = request_progress(request)
    return MatchedRow(row, matcher, tokens_from(request, matcher.next_position(position)))


class GrammarProcessor(ContinuousBatchingLogitsProcessor):  # type: ignore[misc]
    """A logits processor of continuous batching that constrains each answer to one grammar.

    It keeps the requests of a pass between its two calls, so the engine must not use CUDA graphs or
    double buffering.
    """

    supported_kwargs: dict[str, type] = {}  # noqa: RUF012
    ignored_kwargs: tuple[str, ...] = ()

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._matchers: dict[str, AnswerMatcher] = {}
        self._rows: list[MatchedRow] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        """Fill the argument tensor with zeros, because the processor has no tensor arguments."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: list[Any]) -> torch.Tensor:
        """Record the rows and the new tokens of their answers."""
        self._rows = [
            matched_row(row, request, matcher=self._matcher(request_id(request)))
            for row, request in enumerate(requests_with_new_token)
        ]
        return torch.zeros(len(requests_with_new_token), dtype=torch.int32)

    def _matcher(self, request: str) -> AnswerMatcher:
        if request not in self._matchers:
            self._matchers[request] = AnswerMatcher(self._grammar)
        return self._matchers[request]

    def require_usable(self) -> None:
        """Raise the errors of `AnswerMatcher.require_usable`, of all answers."""
        for matcher in self._matchers.values():
            matcher.require_usable()

    def __call__(self, scores: torch.Tensor, _tensor_arg: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, V] with -inf for tokens that cannot follow."""
        for row in self._rows:
            row.constrain(scores)
        return scores


class GrammarLogits(LogitsProcessor):  # type: ignore[misc]
    """A logits processor of `generate` that constrains each row to one grammar."""

    def __init__(self, grammar: Grammar, *, num_rows: int) -> None:
        self._matchers = [AnswerMatcher(grammar) for _ in range(num_rows)]

    def format_fault(self) -> str | None:
        """Return why a row ended because of its format, or None. Scores that are not numbers are no
        such fault.

        Their log-probabilities are not numbers either, which the caller can see.
        """
        for matcher in self._matchers:
            try:
                matcher.require_usable()
            except FormatError as error:
                return str(error)
            except RuntimeError:
                continue
        return None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores [B, V] with -inf for tokens that cannot follow; `input_ids` are prompts
        and answers."""
        tokens: Sequence[list[int]] = input_ids.tolist()
        for row, (matcher, ids) in enumerate(zip(self._matchers, tokens, strict=True)):
            matcher.constrain(scores[row], ids[matcher.next_position(len(ids)) :])
        return scores
