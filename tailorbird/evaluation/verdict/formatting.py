"""Names of metrics, and the format of gains, sizes and p values."""

METRIC_NAMES = {
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "exact_match": "exact match",
    "token_f1": "token F1",
    "rouge_l": "ROUGE-L",
}
"""Names for readers."""


def points(share: float) -> str:
    """Return a share in signed percentage points, with two decimals or enough to show that it is not 0."""
    text = f"{100 * share:+.2f}"
    return f"{100 * share:+.1g}" if share and float(text) == 0 else text


def size(share: float) -> str:
    """Return a share in percentage points without a sign: `1 point`, `2.5 points`."""
    number = f"{100 * share:.4g}"
    return f"{number} {'point' if number == '1' else 'points'}"


def p_text(p_value: float) -> str:
    """Return `p = 0.0314`, or `p < 0.0001`."""
    return "p < 0.0001" if p_value < 0.0001 else f"p = {p_value:.3g}"
