"""The first sentence of a verdict, for readers who decide about the model and not about the statistics."""

from typing import TYPE_CHECKING

from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.verdict.rules import Outcome

if TYPE_CHECKING:
    from tailorbird.evaluation.verdict.types import Verdict

FINE_TUNED = "fine-tuned model"
MODEL_NAMES = {
    "zero_shot": "pretrained model",
    "few_shot": "pretrained model with examples in the prompt",
    "centroid": "pretrained model with class averages",
    "bag_of_words": "bag-of-words model",
    "probe": "pretrained model with a linear head",
    "probe_bag": "bag-of-words + pretrained model",
    "lora": FINE_TUNED,
    "full": FINE_TUNED,
    "hybrid": "hybrid model",
}
"""Names for readers by kind of model; other kinds are shown as they are."""
PERCENTAGES = ("accuracy", "exact_match")  # metrics that are shares of rows


def headline(verdict: "Verdict") -> str:
    """Return one sentence on the model to use, and one on the difference between the two models."""
    incumbent = MODEL_NAMES.get(verdict.incumbent_kind, verdict.incumbent_kind)
    candidate = MODEL_NAMES.get(verdict.candidate_kind, verdict.candidate_kind)
    if incumbent == candidate:
        incumbent, candidate = f"current {incumbent}", f"new {candidate}"
    old = f"the {incumbent} ({_score(verdict, verdict.incumbent_score)})"
    new = f"the {candidate} ({_score(verdict, verdict.candidate_score)})"
    difference = _difference(verdict.gain, verdict.interval)
    if verdict.outcome is Outcome.HYBRID:
        assert verdict.hybrid is not None  # the outcome requires a hybrid
        share, score = verdict.hybrid.share_to_candidate, _score(verdict, verdict.hybrid.score)
        difference = _difference(verdict.hybrid.gain, verdict.hybrid.interval)
        both = f"Use both models ({score}); the {candidate} answers {share:.0%} of the requests."
        return f"{both} The hybrid is better than {old}: {difference}."
    if verdict.rule == 7:
        return f"Use {new}. It costs less than {old} and is not much worse: {difference}."
    if verdict.outcome is Outcome.FINE_TUNE:
        return f"Use {new}. It is better than {old}: {difference}."
    later = " for now" if verdict.outcome is Outcome.INSUFFICIENT_EVIDENCE else ""
    return f"Keep {old}{later}. {_why_not(verdict, candidate)}: {difference}."


def _why_not(verdict: "Verdict", candidate: str) -> str:
    """Return why the candidate does not replace the incumbent."""
    failed = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    low, high = verdict.interval
    if verdict.rule == 2:
        return "The data splits share rows, so the test is not valid"
    if verdict.rule == 5:
        return f"The {candidate} is better, but fails the {' and the '.join(failed)} gate"
    if verdict.rule == 6:
        return f"The {candidate} is better, but a required gate cannot be assessed on these rows"
    if high < 0:
        return f"The {candidate} is worse"
    if low > 0 and verdict.p_value < verdict.alpha:
        return f"The {candidate} is better by too little to justify a change"
    return f"The {candidate} is not shown to be better"


def _score(verdict: "Verdict", score: float) -> str:
    """Return a score as a percentage, or as a number with its metric."""
    return f"{100 * score:.1f} %" if verdict.metric in PERCENTAGES else f"{verdict.metric} {score:.3f}"


def _difference(gain: float, interval: tuple[float, float]) -> str:
    """Return a gain with its interval, in points."""
    low, high = (f"{100 * end:+.1f}" for end in interval)
    return f"{100 * gain:+.1f} points, {low} to {high}"
