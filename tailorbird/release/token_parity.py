"""Compare the token log-probabilities of a served answer with those of the evaluation.

Kernels, batches and devices round differently. Where two tokens are almost equally likely, the same model can therefore
generate another text, and a comparison of texts would refuse it. Log-probabilities at the same position differ by
little. Both answers are greedy, so each token is the most likely one, and tokens need not be known to be compared: the
evidence has no texts.
"""

from collections.abc import Sequence
from typing import NamedTuple


class ServedToken(NamedTuple):
    """A generated token of a served answer."""

    logprob: float  # in nats
    lead: float  # its log-probability minus that of the next most likely token


class TokenComparison(NamedTuple):
    """A served answer compared with the evaluated one."""

    matches: bool
    tie: bool  # true if the answers diverge at two tokens that are almost equally likely
    moves: tuple[float, ...]
    """Differences of the log-probabilities at the compared positions: all, or those up to the tie."""
    position: int | None = None  # of the first token that differs too much, from 0; None if the answers match


def compare_tokens(
    evaluated: Sequence[float], served: Sequence[ServedToken], *, same_text: bool, limit: float
) -> TokenComparison:
    """Compare the log-probabilities of an answer, token by token, with `limit` as the largest difference.

    An answer matches if its text is the same and all tokens are within the limit. It also matches if it diverges at a
    tie: the served token leads by at most twice the limit (each of the two log-probabilities may have moved by the
    limit), and this token and all before it are within the limit. After a tie, the answers cannot be compared.
    """
    moves = [abs(token.logprob - logprob) for token, logprob in zip(served, evaluated, strict=False)]
    num_close = next((position for position, move in enumerate(moves) if not move <= limit), len(moves))
    if same_text and num_close == len(served) == len(evaluated):
        return TokenComparison(matches=True, tie=False, moves=tuple(moves))
    tie = next((position for position in range(num_close) if served[position].lead <= 2 * limit), None)
    if tie is not None:
        return TokenComparison(matches=True, tie=True, moves=tuple(moves[: tie + 1]))
    return TokenComparison(matches=False, tie=False, moves=tuple(moves), position=num_close)
