"""The verdict and its parts."""

from typing import Self

from pydantic import BaseModel, ConfigDict, model_validator

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.verdict.formatting import METRIC_NAMES, p_text, points
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Outcome
from tailorbird.registry.routing import Routing

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


class VerdictPart(BaseModel):
    """Base class of frozen models without unknown fields; every number is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class HybridVerdict(VerdictPart):
    """The evaluation of the hybrid that was fitted on validation, by the same tests as the candidate."""

    routing: Routing
    share_to_candidate: float
    """Share of the test rows that the candidate answers."""
    score: float
    gain: float
    interval: tuple[float, float]
    p_value: float
    p_holm: float
    """p value adjusted by Holm's method over the candidate and the hybrid."""
    proven: bool
    gates: tuple[Gate, ...]


class SecondMetric(VerdictPart):
    """The comparison by a second metric, which no rule reads."""

    metric: str
    incumbent: float
    candidate: float
    gain: float
    interval: tuple[float, float]
    p_value: float


class Verdict(VerdictPart):
    """An outcome with its evidence; gains and intervals are candidate minus the other model, as shares."""

    outcome: Outcome
    rule: int
    """The number of the first rule of the outcome table that holds."""
    reasons: tuple[str, ...]
    metric: str
    """Metric of scores, gains and intervals."""
    n: int
    alpha: float
    """Level of the test and of the intervals, except those of gates."""
    protocol_alpha: float
    """Level of the test protocol, which is that of the gates and of a first access to the test rows."""
    access_number: int
    """Number of the access to these test rows, from 1."""
    minimum_gain: float
    expected_gain: float
    regulated: bool
    incumbent_kind: str
    candidate_kind: str
    incumbent_score: float
    candidate_score: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - alpha; the method depends on the metric (see `statistics.paired.Comparison`)."""
    p_value: float
    """Two-sided; the method depends on the metric (see `statistics.paired.Comparison`)."""
    p_exact: float | None
    """Two-sided p value of McNemar's exact test; no rule reads it."""
    only_incumbent_right: int
    only_candidate_right: int
    second_metric: SecondMetric
    minimum_detectable_effect: float
    """Smallest true gain detected with 80% power on n rows of the observed discordance, by the plain formula."""
    power_at_expected_gain: float
    """Power of the whole rule at the expected gain and the observed discordance."""
    rows_needed: int | None
    """Rows for 80% power of the whole rule at the expected gain; None if no number is enough."""
    proven: bool
    """True if p < alpha, the gain is at least `minimum_gain`, and the interval is above 0."""
    gates: tuple[Gate, ...]
    """Gates of the candidate."""
    cost_ratio: tuple[float, float, float] | None
    """CPU-seconds per row, candidate divided by incumbent: estimate and 1 - alpha interval; None if not measured."""
    hybrid: HybridVerdict | None

    @model_validator(mode="after")
    def _rule_gives_the_outcome(self) -> Self:
        if OUTCOME_OF_RULE.get(self.rule) is not self.outcome:
            raise ValueError(f"rule {self.rule} does not have the outcome {self.outcome}; allowed: {OUTCOME_OF_RULE}")
        if self.n < 1 or not self.reasons:
            raise ValueError(f"n is {self.n} and reasons is {self.reasons!r}; a verdict needs at least one of each")
        return self

    def sentence(self) -> str:
        """Return the model to use and the difference between the two models, without statistical terms."""
        return _headline(self)

    def access(self) -> str:
        """Return the number of the access to the test rows, with the level if it is not the first."""
        level = "" if self.access_number == 1 else f": alpha {self.alpha:.2g} instead of {self.protocol_alpha:g}"
        return f"access {self.access_number} to these rows{level}"

    def numbers(self) -> str:
        """Return one line: outcome, gain in points, interval, p, n, rule."""
        low, high = self.interval
        interval = f"{100 * (1 - self.alpha):.4g}% interval {points(low)} to {points(high)}"
        later = "" if self.access_number == 1 else f"; {self.access()}"
        measured = f"{interval}, {p_text(self.p_value)}, n = {self.n:,}"
        return f"{self.outcome}: {points(self.gain)} points ({measured}), by rule {self.rule}{later}"


def _headline(verdict: Verdict) -> str:
    incumbent = MODEL_NAMES.get(verdict.incumbent_kind, verdict.incumbent_kind)
    candidate = MODEL_NAMES.get(verdict.candidate_kind, verdict.candidate_kind)
    if incumbent == candidate:
        incumbent, candidate = f"current {incumbent}", f"new {candidate}"
    old = f"the {incumbent} ({_score(verdict, verdict.incumbent_score)})"
    new = f"the {candidate} ({_score(verdict, verdict.candidate_score)})"
    difference = _difference(verdict.gain, verdict.interval)
    if verdict.outcome is Outcome.HYBRID and verdict.hybrid is not None:
        share, score = verdict.hybrid.share_to_candidate, _score(verdict, verdict.hybrid.score)
        difference = _difference(verdict.hybrid.gain, verdict.hybrid.interval)
        both = f"Use both models ({score}); the {candidate} answers {share:.0%} of the test rows."
        return f"{both} The hybrid is better than {old}: {difference}."
    if verdict.rule == 7:
        return f"Use {new}. It costs less to serve than {old} and is not much worse: {difference}."
    if verdict.outcome is Outcome.FINE_TUNE:
        return f"Use {new}. It is better than {old}: {difference}."
    later = " for now" if verdict.outcome is Outcome.INSUFFICIENT_EVIDENCE else ""
    return f"Keep {old}{later}. {_why_not(verdict, candidate)}: {difference}."


def _why_not(verdict: Verdict, candidate: str) -> str:
    """Return why the candidate does not replace the incumbent."""
    failed = [gate.name for gate in verdict.gates if gate.state is State.FAILS]
    low, high = verdict.interval
    if verdict.rule == 2:
        return "Two data splits share a document or a text, so the test is not valid"
    if verdict.rule == 5:
        return f"The {candidate} is better, but fails the {' and the '.join(failed)} gate"
    if verdict.rule == 6:
        return f"The {candidate} is better, but a required gate cannot be assessed"
    if high < 0:
        return f"The {candidate} is worse"
    if low > 0 and verdict.p_value < verdict.alpha:
        return f"The {candidate} is better, but the measured gain is below the minimum gain"
    return f"The {candidate} is not shown to be better"


def _score(verdict: Verdict, score: float) -> str:
    """Return a score as a percentage, or as a number with its metric."""
    return f"{100 * score:.1f} %" if verdict.metric in PERCENTAGES else f"{METRIC_NAMES[verdict.metric]} {score:.3f}"


def _difference(gain: float, interval: tuple[float, float]) -> str:
    """Return a gain with its interval, in points."""
    low, high = (f"{100 * end:+.1f}" for end in interval)
    return f"{100 * gain:+.1f} points, {low} to {high}"
