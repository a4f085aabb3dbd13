"""Compare the token log-probabilities of a served answer with those of the evaluation.

Kernels, batches and devices round differently. Where two tokens are almost equally likely, the same
model can therefore generate another text, and a comparison of texts would refuse it.
Log-probabilities at the same position differ by little. Both answers are greedy, so each token is
the most likely one, and tokens need not be known to be compared: the evidence has no texts.
"""

from collections.abc import Sequence
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from tailorbird.registry.champion import ParityResult
from tailorbird.registry.versions import now
from tailorbird.release.probe_requests import Difference, ParityProbe, ServedAnswer, ServedToken


class TokenTolerance(NamedTuple):
    """Tolerated differences between served and evaluated log-probabilities, in nats."""

    largest: float  # of any token
    usual: float  # of all but few tokens; see `too_many_exceed`


MAX_SHARE = 0.03
MAX_TOKENS = 2
TOKEN_TOLERANCE = {
    "float32": TokenTolerance(largest=0.02, usual=0.002),
    "bfloat16": TokenTolerance(largest=0.5, usual=0.2),
}
"""Tolerances by dtype. More tokens than `MAX_TOKENS` and than `MAX_SHARE` of all must not exceed
`usual`.

Measured in bfloat16 with SmolLM2-135M on 40 questions with answers of 16 tokens, against continuous
batching. With the service's engine, and with a plain loop with two attention kernels and with fp32
arithmetic, log-probabilities differ by up to 0.385, and 0 to 1.3% of them by more than 0.2. With
faults, more of them do: 7.6% for a skipped position, 11% for an adapter with half of its scale and
25% with twice, 29% for a system message without its last word, 44% for none. The mean of the
differences separates less, 0.032 from 0.055. In addition, 5 to 21 of the 40 answers with a fault
are refused by themselves, because they diverge without a tie or a token differs by more than 0.5.
An adapter with 0.9 of its scale is at the limit, 3.4%.

In float32, a plain loop changes log-probabilities by up to 0.00001, and a skipped position by 0.054
on average.
"""


class TokenComparison(NamedTuple):
    """A served answer compared with the evaluated one."""

    matches: bool
    tie: bool  # true if the answers diverge at two tokens that are almost equally likely
    moves: tuple[float, ...]
    """Differences of the log-probabilities at the compared positions: all, or those up to the
    tie."""
    position: int | None = (
        None  # of the first token that differs too much, from 0; None if the answers match
    )


def compare_chats(
    probes: Sequence[ParityProbe], answers: Sequence[ServedAnswer], *, tolerance: TokenTolerance
) -> tuple[ParityResult, list[Difference]]:
    """Return the number of matching answers of a language model, and the probes whose answers
    differ.

    See `compare_tokens` for a single answer. If too many tokens of the matching answers differ by
    more than `tolerance.usual`, each answer with such a token is a difference too.
    """
    compared = [
        compare_tokens(
            probe.logprobs or (),
            answer.tokens,
            same_text=answer.output == probe.output,
            limit=tolerance.largest,
        )
        for probe, answer in zip(probes, answers, strict=True)
    ]
    matching = [result for result in compared if result.matches]
    moves = list(chain.from_iterable(result.moves for result in matching))
    if too_many_exceed(moves, usual=tolerance.usual):
        limit = tolerance.usual
    else:
        limit = tolerance.largest
    accepted = [result.matches and max(result.moves, default=0.0) <= limit for result in compared]
    pairs = zip(probes, answers, strict=True)
    differing = [pair for pair, is_accepted in zip(pairs, accepted, strict=True) if not is_accepted]
    parity = ParityResult(
        rows=len(probes),
        matching=len(probes) - len(differing),
        ties=sum(
            result.tie
            for result, is_accepted in zip(compared, accepted, strict=True)
            if is_accepted
        ),
        largest_difference=max(moves, default=None),
        mean_difference=fmean(moves) if moves else None,
        at=now(),
    )
    return parity, differing


def compare_tokens(
    evaluated: Sequence[float], served: Sequence[ServedToken], *, same_text: bool, limit: float
) -> TokenComparison:
    """Compare the log-probabilities of an answer, token by token, with `limit` as the largest
    difference.

    An answer with the same text matches if all tokens are within the limit. An answer with another
    text matches if it diverges at a tie: the served token leads by at most the limit, and this
    token and all before it are within the limit. After a tie, the answers cannot be compared.
    """
    moves = [
        abs(token.logprob - logprob) for token, logprob in zip(served, evaluated, strict=False)
    ]
    num_close = next(
        (position for position, move in enumerate(moves) if not move <= limit), len(moves)
    )
    if same_text and num_close == len(served) == len(evaluated):
        return TokenComparison(matches=True, tie=False, moves=tuple(moves))
    tie = next((position for position in range(num_close) if served[position].lead <= limit), None)
    if tie is not None and not same_text:
        return TokenComparison(matches=True, tie=True, moves=tuple(moves[: tie + 1]))
    return TokenComparison(matches=False, tie=False, moves=tuple(moves), position=num_close)


def too_many_exceed(moves: Sequence[float], *, usual: float) -> bool:
    """Return True if more than `MAX_SHARE` of the differences, and more than `MAX_TOKENS`, exceed
    the usual one."""
    return sum(move > usual for move in moves) > max(MAX_TOKENS, MAX_SHARE * len(moves))
