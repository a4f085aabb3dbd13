"""Why a verdict is what it is: its reasons as sentences, none of which claims more than the interval gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from evaluation.metrics import Comparison
from evaluation.power import RowsNeeded

if TYPE_CHECKING:
    from evaluation.verdict import Question


def points(share: float) -> str:
    """A share in signed percentage points: two decimals, or as many as it takes not to show a difference as none."""
    text = f"{100 * share:+.2f}"
    return f"{100 * share:+.1g}" if share and float(text) == 0 else text


def size(share: float) -> str:
    """A share in percentage points, without a sign: `1 point`, `2.5 points`."""
    number = f"{100 * share:.4g}"
    return f"{number} {'point' if number == '1' else 'points'}"


def p_text(p_value: float) -> str:
    """`p = 0.0314`, or `p < 0.0001`."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.3g}"


def proven(main: Comparison, *, reference: Comparison, question: Question) -> tuple[str, ...]:
    minimum, (low, _) = size(question.minimum_gain), main.interval
    if low >= question.minimum_gain:
        gain = f"a gain of at least {minimum} is proven: the interval begins at {points(low)}"
    else:
        gain = (
            f"a gain above 0 is proven and estimated at {points(main.gain)} points, not under the minimum of "
            f"{minimum}; the interval begins at {points(low)}, so a smaller gain is not ruled out"
        )
    beaten = f"the bag-of-words reference is beaten by {points(reference.gain)} points"
    return gain, f"{beaten} (interval from {points(reference.interval[0])})"


def insufficient(main: Comparison, *, needed: RowsNeeded, question: Question) -> tuple[str, ...]:
    (low, high), n = main.interval, main.counts.n
    why = (
        f"the interval {points(low)} to {points(high)} points holds both no gain and the minimum gain of "
        f"{size(question.minimum_gain)}"
    )
    expected = size(question.expected_gain)
    if needed.rows is None:
        rows = f"rows needed: {needed.reason}"
    elif needed.rows > n:
        rows = f"rows needed: about {needed.rows:,} for 80 % power at a gain of {expected}; this test has {n:,}"
    else:
        rows = (
            f"rows needed: this test's {n:,} rows suffice for 80 % power at a gain of {expected} ({needed.rows:,} do); "
            "a smaller gain may be there, and takes more rows: ask with a smaller expected_gain to see how many"
        )
    return why, rows, *_disagreement(main, question)


def stay(main: Comparison, *, reference: Comparison, question: Question) -> tuple[str, ...]:
    high, gain, minimum = main.interval[1], main.gain, size(question.minimum_gain)
    reasons = []
    if high < 0:
        reasons.append(f"the candidate is worse: the interval ends at {points(high)} points")
    elif high < question.minimum_gain:
        reasons.append(f"a gain of {minimum} is ruled out: the interval ends at {points(high)}")
    elif gain < question.minimum_gain:
        reasons.append(f"the gain of {points(gain)} points is under the minimum of {minimum}")
    if reference.interval[0] <= 0:
        reasons.append(
            f"the bag-of-words reference is not beaten: {points(reference.gain)} points against it, "
            f"interval {points(reference.interval[0])} to {points(reference.interval[1])}"
        )
    return *reasons, *_disagreement(main, question)


def _disagreement(main: Comparison, question: Question) -> tuple[str, ...]:
    low, high = main.interval
    if (main.p_value < question.alpha) == (low > 0 or high < 0):
        return ()
    return (
        f"p and interval disagree: {p_text(main.p_value)} against alpha = {question.alpha:g}, interval "
        f"{points(low)} to {points(high)}",
    )
