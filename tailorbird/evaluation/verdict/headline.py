"""The first sentence of a verdict, for readers who do not need the statistics."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.verdict.formatting import METRIC_NAMES
from tailorbird.evaluation.verdict.rules import Outcome

if TYPE_CHECKING:
    from tailorbird.evaluation.verdict.types import ContenderVerdict, HybridVerdict, Verdict

FINE_TUNED = "fine-tuned model"
MODEL_NAMES = {
    "zero_shot": "pretrained model",
    "few_shot": "pretrained model with examples in the prompt",
    "centroid": "pretrained model with class averages",
    "bag_of_words": "bag-of-words model",
    "probe": "pretrained model with a linear head",
    "probe_bag": "bag-of-words + pretrained model",
    "lora": FINE_TUNED,
    "lora_bag": f"{FINE_TUNED} with a bag of words",
    "full": FINE_TUNED,
    "full_bag": f"{FINE_TUNED} with a bag of words",
    "hybrid": "hybrid model",
}
"""Names for readers by kind of model; other kinds are shown as they are."""
PERCENTAGES = ("accuracy", "exact_match")  # metrics that are shares of rows


def headline(verdict: Verdict) -> str:
    """Return the model to use and the difference to the other model, without statistical terms."""
    incumbent, candidate = model_name(verdict.incumbent_kind), model_name(verdict.candidate_kind)
    if incumbent == candidate:
        incumbent, candidate = f"current {incumbent}", f"new {candidate}"
    old = f"the {incumbent} ({_score(verdict, verdict.incumbent_score)})"
    new = f"the {candidate} ({_score(verdict, verdict.candidate_score)})"
    difference = _difference(verdict.gain, verdict.interval)
    if verdict.outcome is Outcome.HYBRID and verdict.hybrid is not None:
        return _hybrid(verdict, verdict.hybrid, old=old, candidate=candidate)
    if verdict.contender is not None:
        return _replacement(verdict, verdict.contender, incumbent=incumbent, candidate=candidate)
    if verdict.rule == 7:
        return f"Use {new}. It costs less to serve than {old} and is not much worse: {difference}."
    if verdict.outcome is Outcome.FINE_TUNE:
        return f"Use {new}. It is better than {old}: {difference}."
    if verdict.rule == 5:
        return f"Keep {old}: {new} is better, but fails {_failed(verdict)}: {difference}."
    later = " for now" if verdict.outcome is Outcome.INSUFFICIENT_EVIDENCE else ""
    return f"Keep {old}{later}. {_why_not(verdict, candidate)}: {difference}."


def model_name(kind: str) -> str:
    """Return the name of a kind of model for readers."""
    return MODEL_NAMES.get(kind, kind)


def _hybrid(verdict: Verdict, hybrid: HybridVerdict, *, old: str, candidate: str) -> str:
    share, score = hybrid.share_to_candidate, _score(verdict, hybrid.score)
    both = f"Use both models ({score}); the {candidate} answers {share:.0%} of the test rows."
    difference = _difference(hybrid.gain, hybrid.interval)
    if hybrid.proven:
        return f"{both} The hybrid is better than {old}: {difference}."
    return f"{both} The hybrid is not much worse than {old} and costs less than the better of the two: {difference}."


def _replacement(verdict: Verdict, contender: ContenderVerdict, *, incumbent: str, candidate: str) -> str:
    name = model_name(contender.kind)
    if name == model_name(verdict.incumbent_kind):
        name, incumbent = f"new {name}", f"current {name}"
    use = f"Use the {name} ({_score(verdict, contender.score)})"
    old = f"the {incumbent} ({_score(verdict, verdict.incumbent_score)})"
    difference = _difference(contender.gain, contender.interval)
    if verdict.rule == 5:
        also = f"the {candidate} ({_score(verdict, verdict.candidate_score)}) is better too, but fails"
        return f"{use}, which is better than {old}: {difference}; {also} {_failed(verdict)}."
    why_not = _why_not(verdict, candidate)
    if verdict.proven:
        is_open = verdict.regulated and any(gate.state is State.NOT_ASSESSABLE for gate in verdict.gates)
        why_not = f"The {candidate} is better too, but {'a required gate cannot be assessed' if is_open else 'less so'}"
    compared = _difference(verdict.gain, verdict.interval)
    return f"{use}. It is better than {old}: {difference}. {why_not}: {compared}."


def _failed(verdict: Verdict) -> str:
    failed = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    return f"the {' and the '.join(failed)} gate"


def _why_not(verdict: Verdict, candidate: str) -> str:
    """Return why the candidate does not replace the incumbent."""
    low, high = verdict.interval
    if verdict.rule == 2:
        return "Two data splits share a document or a text, so the test is not valid"
    if verdict.rule == 6:
        return f"The {candidate} is better, but a required gate cannot be assessed"
    if high < 0:
        return f"The {candidate} is worse"
    if low > 0 and verdict.p_holm < verdict.alpha:
        return f"The {candidate} is better, but the measured gain is below the minimum gain"
    return f"The {candidate} is not shown to be better"


def _score(verdict: Verdict, score: float) -> str:
    """Return a score as a percentage, or as a number with its metric."""
    return f"{100 * score:.1f} %" if verdict.metric in PERCENTAGES else f"{METRIC_NAMES[verdict.metric]} {score:.3f}"


def _difference(gain: float, interval: tuple[float, float]) -> str:
    """Return a gain with its interval, in points."""
    low, high = (f"{100 * end:+.1f}" for end in interval)
    return f"{100 * gain:+.1f} points, {low} to {high}"
