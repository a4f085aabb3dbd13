"""Names of models, and the format of gains, sizes and p values."""

from collections.abc import Sequence
from math import ceil

from tailorbird.config.metrics import METRICS
from tailorbird.registry.kinds import spec_of


def model_name(kind: str) -> str:
    """Return the name of a kind of model for readers; another kind is shown as it is."""
    return spec_of(kind).title or kind


def named(role: str) -> str:
    """Return a role in a sentence: `the candidate`, but `bag_of_words`."""
    if role in ("incumbent", "candidate", "hybrid"):
        return f"the {role}"
    return role


def money(amount: float) -> str:
    """Return an amount with two decimals, or with two digits if it is below 0.01."""
    if abs(amount) >= 0.01 or amount == 0:
        return f"{amount:,.2f}"
    return f"{amount:.2g}"


def points(share: float) -> str:
    """Return a share in signed percentage points, with two decimals or enough to show that it is
    not 0."""
    text = f"{100 * share:+.2f}"
    if share and float(text) == 0:
        return f"{100 * share:+.1g}"
    return text


def size(share: float) -> str:
    """Return a share in percentage points without a sign: `1 point`, `2.5 points`."""
    number = f"{100 * share:.4g}"
    return f"{number} {'point' if number == '1' else 'points'}"


def score_text(metric: str, score: float, *, form: str = "") -> str:
    """Return a score as a percentage with one decimal or as a number with three, or in another
    format."""
    if METRICS[metric].is_percentage:
        return f"{100 * score:{form or '.1f'}}%"
    return f"{score:{form or '.3f'}}"


def at_most(share: float) -> str:
    """Return an upper bound in percentage points, rounded up to two decimals: `0.26`."""
    return f"{ceil(round(10_000 * share, 6)) / 100:g}"


def interval_name(level: float) -> str:
    """Return the name of a two-sided interval at 1 - level: `95% interval`."""
    return f"{100 * (1 - level):.4g}% interval"


def between(interval: tuple[float, float]) -> str:
    """Return the ends of an interval of a gain in percentage points: `+0.56 to +4.22`."""
    low, high = interval
    return f"{points(low)} to {points(high)}"


def gain_text(
    gain: float, interval: tuple[float, float], *, level: float, more: Sequence[str] = ()
) -> str:
    """Return a gain with its interval: `+2.39 points (95% interval +0.56 to +4.22)`, with `more` in
    the parenthesis."""
    return (
        f"{points(gain)} points "
        f"({', '.join((f'{interval_name(level)} {between(interval)}', *more))})"
    )


def sentence(text: str) -> str:
    """Return a text with a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def p_text(p_value: float) -> str:
    """Return `p = 0.0314`, or `p < 0.0001`."""
    if p_value < 0.0001:
        return "p < 0.0001"
    return f"p = {p_value:.3g}"


def outcome_basis(metric: str) -> str:
    """Return ` by exact match` if a page must say how paired outcomes are counted, because the
    metric differs.

    Outcomes are counted by whether an output equals its label. Metrics of classification and exact
    match add nothing.
    """
    spec = METRICS[metric]
    if spec.is_share or spec.is_over_classes:
        return ""
    return " by exact match"


def cost_basis(unit: str | None) -> str:
    """Return how costs are compared: `by CPU-seconds per row`, or by the price at the recipe's
    volume."""
    if unit == "price":
        return "by price at the recipe's volume"
    return f"by {unit} per row"


def listed(words: Sequence[str]) -> str:
    """Return one or more words as a list in a sentence: `a, b and c`."""
    *some, last = words
    if some:
        return f"{', '.join(some)} and {last}"
    return last


def counted(number: float, noun: str) -> str:
    """Return a number with its noun: `1 row`, `2 rows`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
