"""Compare served answers with evaluated ones.

Kernels, batches and devices round differently, so probabilities may differ a little. Where two
tokens are almost equally likely, the same language model can generate another text, and a
comparison of texts would refuse it. Log-probabilities at the same position differ by little. Both
answers are greedy, so each token is the most likely one, and tokens need not be known to be
compared: the evidence has no texts.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from statistics import fmean
from typing import NamedTuple

from tailorbird.registry.champion import ParityResult
from tailorbird.registry.versions import now
from tailorbird.release.probe_requests import ParityProbe, ProbePair, ServedAnswer


class Tolerance(NamedTuple):
    """Maximum difference between served and evaluated probabilities."""

    row: float
    mean: float  # over all rows


TOLERANCE = {"float32": Tolerance(row=0.002, mean=0.002), "bfloat16": Tolerance(row=0.2, mean=0.01)}
"""Tolerances by dtype. Measured on 1,997 ICD-10-CM terms, MiniLM with a fitted head: another batch
changes probabilities by up to 5e-6 in float32, and in bfloat16 by up to 0.05 and by 0.003 on
average. In bfloat16, rounding changes few rows strongly, but faults change most rows: a temperature
of 1.1 instead of 1 by 0.015 on average, texts cut to 16 tokens by 0.03."""


class TokenTolerance(NamedTuple):
    """Tolerated differences between served and evaluated log-probabilities, in nats."""

    largest: float  # of any token
    usual: float  # of all but few tokens; see `compare_chats`


MAX_SHARE = 0.03
MAX_TOKENS = 2
TOKEN_TOLERANCE = {
    "float32": TokenTolerance(largest=0.02, usual=0.002),
    "bfloat16": TokenTolerance(largest=0.5, usual=0.2),
}
"""Tolerances by dtype.

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


class Comparison(NamedTuple):
    """A served answer compared with the evaluated one."""

    matches: bool
    is_tie: bool = False
    """True if another label, or another token where the answers diverge, is almost as likely."""
    moves: tuple[float, ...] = ()
    """Differences of the probability or, for chat, of the log-probabilities up to a tie."""


def compare_labels(
    pairs: Sequence[ProbePair], *, tolerance: Tolerance
) -> tuple[ParityResult, list[ProbePair]]:
    """Return the number of matching labels, and the probes whose answers differ.

    If the probabilities of the matching rows differ by more than the mean tolerance on average,
    each row above the mean tolerance is a difference too.
    """
    compared = [compare_label(probe, answer, limit=tolerance.row) for probe, answer in pairs]
    moves = _moves(compared)
    limit = tolerance.row
    if moves and fmean(moves) > tolerance.mean:
        limit = tolerance.mean
    return _result(pairs, compared, limit=limit)


def compare_label(probe: ParityProbe, answer: ServedAnswer, *, limit: float) -> Comparison:
    """Compare the label and, if it is known, the probability of the evaluated label.

    Another label matches only in a tie: the served probabilities of both labels differ by at most
    the limit.
    """
    has_same_label = answer.output == probe.output
    if probe.confidence is None:
        return Comparison(has_same_label)
    probability = answer.scores.get(probe.output, 0.0)
    move = abs(probability - probe.confidence)
    lead = answer.scores.get(answer.output, 1.0) - probability
    is_tie = not has_same_label and answer.output != "" and lead <= limit
    return Comparison((has_same_label or is_tie) and move <= limit, is_tie, (move,))


def compare_chats(
    pairs: Sequence[ProbePair], *, tolerance: TokenTolerance
) -> tuple[ParityResult, list[ProbePair]]:
    """Return the number of matching answers of a language model, and the probes whose answers
    differ.

    If more than `MAX_TOKENS` tokens, and more than `MAX_SHARE` of all, of the matching answers
    differ by more than `tolerance.usual`, each answer with such a token is a difference too.
    """
    compared = [compare_tokens(probe, answer, limit=tolerance.largest) for probe, answer in pairs]
    moves = _moves(compared)
    unusual = [move for move in moves if move > tolerance.usual]
    limit = tolerance.largest
    if len(unusual) > max(MAX_TOKENS, MAX_SHARE * len(moves)):
        limit = tolerance.usual
    return _result(pairs, compared, limit=limit)


def compare_tokens(probe: ParityProbe, answer: ServedAnswer, *, limit: float) -> Comparison:
    """Compare the log-probabilities of an answer, token by token, with `limit` as the largest
    difference.

    An answer with the same text matches if all tokens are within the limit. An answer with another
    text matches if it diverges at a tie: the served token leads by at most the limit, and this
    token and all before it are within the limit. After a tie, the answers cannot be compared.
    """
    evaluated = probe.logprobs or ()
    has_same_text = answer.output == probe.output
    moves: list[float] = []
    for token, logprob in zip(answer.tokens, evaluated, strict=False):
        move = abs(token.logprob - logprob)
        if not move <= limit:  # also if it is not a number
            return Comparison(matches=False)
        moves.append(move)
        if token.lead <= limit and not has_same_text:
            return Comparison(matches=True, is_tie=True, moves=tuple(moves))
    has_same_length = len(answer.tokens) == len(evaluated)
    return Comparison(has_same_text and has_same_length, moves=tuple(moves))


def _moves(compared: Iterable[Comparison]) -> list[float]:
    return list(chain.from_iterable(result.moves for result in compared if result.matches))


def _result(
    pairs: Sequence[ProbePair], compared: Sequence[Comparison], *, limit: float
) -> tuple[ParityResult, list[ProbePair]]:
    """Return the result and the differing probes: those without a match or above the limit."""
    differing = []
    for pair, result in zip(pairs, compared, strict=True):
        if not result.matches or max(result.moves, default=0.0) > limit:
            differing.append(pair)
    moves = _moves(compared)
    parity = ParityResult(
        rows=len(pairs),
        matching=len(pairs) - len(differing),
        ties=len([result for result in compared if result.matches and result.is_tie]),
        largest_difference=max(moves, default=None),
        mean_difference=fmean(moves) if moves else None,
        at=now(),
    )
    return parity, differing
