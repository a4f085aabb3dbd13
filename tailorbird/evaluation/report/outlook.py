"""What is served after a verdict that keeps or replaces the incumbent, and what would change it."""

from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.report.evidence import Evidence, ModelScore
from tailorbird.evaluation.statistics.power import rows_text
from tailorbird.evaluation.verdict.formatting import PERCENTAGES, model_name, size
from tailorbird.evaluation.verdict.types import Verdict

PRETRAINED_ALONE = ("zero_shot", "centroid", "probe", "few_shot")
"""Kinds of baselines that use nothing but the pretrained model and the training rows' labels or a few examples."""


def outlook_sentence(evidence: Evidence) -> str | None:
    """Return `served_sentence` and what would change that; None if the candidate or the hybrid is served."""
    served = served_sentence(evidence)
    return None if served is None else f"{served} {what_would_change(evidence.verdict)}"


def served_sentence(evidence: Evidence) -> str | None:
    """Return which model is served and why, and its gain over the pretrained model alone.

    Return None if the candidate or the hybrid is served.
    """
    verdict = evidence.verdict
    if verdict.winner in ("candidate", "hybrid"):
        return None
    role = "contender" if verdict.replacement else "incumbent"
    kind = verdict.replacement or evidence.versions["incumbent"].kind
    scores = [score for score in evidence.scores if score.role == role and score.kind in (kind, "champion")]
    served = max(scores, key=lambda score: score.validation, default=None)
    if verdict.replacement:
        why = "is proven better than the incumbent"
    elif evidence.champion is not None:
        why = "is the champion"
    else:
        why = "is the best servable baseline on validation"
    gain = ""
    if served is not None and kind not in PRETRAINED_ALONE:
        gain = _over_pretrained(served, evidence.scores, metric=verdict.metric)
    return f"The {model_name(kind)} is served, because it {why}{gain}."


def _over_pretrained(served: ModelScore, scores: tuple[ModelScore, ...], *, metric: str) -> str:
    """Return the gain of the served model over the best model that is the pretrained model alone.

    It is the gain on the test rows if both models predicted them, and on validation otherwise.
    """
    alone = [score for score in scores if score.kind in PRETRAINED_ALONE and score.servable]
    best = max(alone, key=lambda score: score.validation, default=None)
    if best is None:
        return ""
    rows, ours, theirs = "validation", served.validation, best.validation
    if served.test is not None and best.test is not None:
        rows, ours, theirs = "the test rows", served.test, best.test
    pair = f"{_score(ours, metric)} against {_score(theirs, metric)}"
    gain = 100 * (ours - theirs)
    comparison = f"{abs(gain):.1f} points {'better' if gain >= 0 else 'worse'} than the pretrained model alone"
    return f". On {rows}, it is {comparison} ({pair}, {best.kind})"


def _score(value: float, metric: str) -> str:
    return f"{100 * value:.1f}%" if metric in PERCENTAGES else f"{value:.3f}"


def what_would_change(verdict: Verdict) -> str:
    """Return what leads to another outcome, as a sentence."""
    if verdict.winner in ("candidate", "hybrid"):
        gain = size(verdict.minimum_gain)
        return f"A later run replaces the {verdict.winner} if a model is proven better, with a gain of {gain} or more."
    return f"{_what_would_replace(verdict)}."


def _what_would_replace(verdict: Verdict) -> str:
    stopping = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    if verdict.rule == 2:
        return "Splits that share no document and no text would give a valid test"
    if verdict.rule == 5:
        return f"A candidate that also passes the {' and the '.join(stopping)} gate would replace it"
    if verdict.rule == 6:
        return "The rows that the open gates need would decide"
    if verdict.rule == 8:
        return _rows_for_both_gains(verdict)
    return f"A candidate that is proven better, with a gain of {size(verdict.minimum_gain)} or more, would replace it"


def _rows_for_both_gains(verdict: Verdict) -> str:
    """Return the rows that the minimum gain and the expected gain need, and the rows of this test."""
    least, needed = rows_text(verdict.rows_needed_for_minimum_gain), rows_text(verdict.rows_needed)
    if verdict.expected_gain <= verdict.minimum_gain:  # then the estimate is below the minimum gain too often
        needed = "no number of test rows"
    parts = [f"give FINE_TUNE at a true gain of {size(verdict.expected_gain)} (expected_gain) with {needed}"]
    if verdict.minimum_gain > 0:
        parts = [f"detect a true gain of {size(verdict.minimum_gain)} (minimum_gain) with {least}", *parts]
    return f"80% of tests {', and '.join(parts)}; this test has {verdict.n:,}"
