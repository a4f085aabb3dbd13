"""The verdict, with its sentence for readers."""

from typing import Self

from pydantic import model_validator

from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.evaluation.gates.prices import CostUnit
from tailorbird.evaluation.statistics.posterior import Posterior
from tailorbird.evaluation.verdict.formatting import (
    METRIC_NAMES,
    PERCENTAGES,
    interval_name,
    model_name,
    p_text,
    points,
)
from tailorbird.evaluation.verdict.parts import (
    ContenderCost,
    ContenderVerdict,
    HybridVerdict,
    SecondMetric,
    VerdictPart,
)
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Outcome


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
    """Level of this access to the test rows, over all contenders; `level` is the part of it for the candidate."""
    protocol_alpha: float
    """Level of the test protocol, which is that of the gates and of a first access to the test rows."""
    access_number: int
    """Number of the access to these test rows, from 1."""
    minimum_gain: float
    non_inferiority_margin: float
    expected_gain: float
    regulated: bool
    incumbent_kind: str
    candidate_kind: str
    incumbent_score: float
    candidate_score: float
    gain: float
    interval: tuple[float, float]
    """Two-sided at level 1 - `level`; the method depends on the metric (see `statistics.paired.Comparison`)."""
    level: float
    """The level at which Holm's method tests the candidate: alpha, or a part of it (see `verdict.family`)."""
    p_value: float
    """Two-sided; the method depends on the metric (see `statistics.paired.Comparison`)."""
    p_holm: float
    """p value adjusted by Holm's method over the candidate, the hybrid and the further contenders."""
    p_exact: float | None
    """Two-sided p value of McNemar's exact test; no rule reads it."""
    only_incumbent_right: int
    only_candidate_right: int
    second_metric: SecondMetric
    minimum_detectable_effect: float
    """Smallest true gain detected with 80% power on n rows of the observed discordance, by the plain formula."""
    power_at_expected_gain: float
    """Probability of FINE_TUNE, gates included, if the candidate's true gain over the incumbent is the expected one."""
    power_limited_by: str
    """What most often prevents FINE_TUNE at the expected gain."""
    hybrid_power: float | None
    """Probability of HYBRID if the candidate is as good as the incumbent; None without a hybrid."""
    rows_needed: int | None
    """Rows for FINE_TUNE in 80% of tests at the expected gain; None if no number is enough."""
    rows_needed_for_minimum_gain: int | None
    """Rows with which a true gain of `minimum_gain` over the incumbent is significantly above 0 in 80% of tests."""
    proven: bool
    """True if the adjusted p < alpha, the gain is at least `minimum_gain`, and the interval is above 0."""
    posterior: Posterior
    """The posterior of the gain, which no rule reads."""
    gates: tuple[Gate, ...]
    """Gates of the candidate."""
    cost_ratio: tuple[float, float, float] | None
    """Cost of serving, candidate divided by incumbent: estimate and 1 - alpha interval; None if not assessable."""
    cost_unit: CostUnit | None
    """What all cost ratios compare: the price at the recipe's volume if it has prices, else GPU-seconds per row if
    replicas have GPUs, else CPU-seconds; None if not measured."""
    costs: tuple[ContenderCost, ...]
    """Cost of the incumbent, the candidate, the hybrid and the further contenders; empty without prices. No rule reads
    it."""
    hybrid: HybridVerdict | None
    contenders: tuple[ContenderVerdict, ...]
    """The further contenders, best on validation first."""
    replacement: str | None
    """Role of the contender that replaces the incumbent; only with STAY."""
    accepted_loss: float
    """Losses accepted for lower cost since the last proven champion, once the selected version is the champion."""

    @model_validator(mode="after")
    def _rule_gives_the_outcome(self) -> Self:
        if OUTCOME_OF_RULE.get(self.rule) is not self.outcome:
            raise ValueError(f"rule {self.rule} does not have the outcome {self.outcome}; allowed: {OUTCOME_OF_RULE}")
        if self.n < 1 or not self.reasons:
            raise ValueError(f"n is {self.n} and reasons is {self.reasons!r}; a verdict needs at least one of each")
        return self

    @property
    def winner(self) -> str:
        """The role that the verdict selects."""
        return winner_of(self.outcome, replacement=self.replacement)

    @property
    def family_size(self) -> int:
        """The number of contenders tested against the incumbent."""
        return 1 + (self.hybrid is not None) + len(self.contenders)

    @property
    def contender(self) -> ContenderVerdict | None:
        """The contender that replaces the incumbent."""
        return next((contender for contender in self.contenders if contender.role == self.replacement), None)

    @property
    def shown(self) -> "Verdict | HybridVerdict | ContenderVerdict":
        """The evaluation of the hybrid or the further contender if it is selected, and of the candidate otherwise."""
        return (self.hybrid if self.outcome is Outcome.HYBRID else self.contender) or self

    def sentence(self) -> str:
        """Return the model to use and the difference between the two models, without statistical terms."""
        return _headline(self)

    def access(self) -> str:
        """Return the number of the access to the test rows, with the level if it is not the first."""
        level = "" if self.access_number == 1 else f": alpha {self.alpha:.2g} instead of {self.protocol_alpha:g}"
        return f"access {self.access_number} to these rows{level}"

    def numbers(self) -> str:
        """Return one line: outcome, gain in points, interval, p, n, rule.

        The gain is that of `shown`, and its interval has the level of Holm's test.
        """
        shown = self.shown
        low, high = shown.interval
        interval = f"{interval_name(shown.level)} {points(low)} to {points(high)}"
        later = "" if self.access_number == 1 else f"; {self.access()}"
        family = f" after Holm's correction for {self.family_size} comparisons" if self.family_size > 1 else ""
        measured = f"{interval}, {p_text(shown.p_holm)}{family}, n = {self.n:,}"
        return f"{self.outcome}: {points(shown.gain)} points ({measured}), by rule {self.rule}{later}"


def winner_of(outcome: Outcome, *, replacement: str | None) -> str:
    """Return the role that an outcome selects; `replacement` is the role that replaces the incumbent, if any."""
    changed = {Outcome.FINE_TUNE: "candidate", Outcome.HYBRID: "hybrid"}.get(outcome)
    return changed or replacement or "incumbent"


def _headline(verdict: Verdict) -> str:
    """Return the model to use and the difference to the other model, without statistical terms."""
    incumbent, candidate = model_name(verdict.incumbent_kind), model_name(verdict.candidate_kind)
    if incumbent == candidate:
        incumbent, candidate = f"current {incumbent}", f"new {candidate}"
    old = f"the {incumbent} ({_score(verdict, verdict.incumbent_score)})"
    new = f"the {candidate} ({_score(verdict, verdict.candidate_score)})"
    difference = _difference(verdict.gain, verdict.interval)
    if verdict.outcome is Outcome.HYBRID and verdict.hybrid is not None:
        return _hybrid(verdict, verdict.hybrid, old=old)
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


def _hybrid(verdict: Verdict, hybrid: HybridVerdict, *, old: str) -> str:
    share, score = hybrid.share_to_second, _score(verdict, hybrid.score)
    first, second = (model_name(part.kind) for part in hybrid.parts)
    if first == second:
        first, second = (f"{name} ({part.role})" for name, part in zip((first, second), hybrid.parts, strict=True))
    both = (
        f"Use the {first} and the {second} together ({score}): the {first} answers {1 - share:.0%} of the test rows, "
        f"and the {second} the others."
    )
    difference = _difference(hybrid.gain, hybrid.interval)
    if hybrid.proven:
        return f"{both} The hybrid is better than {old}: {difference}."
    return f"{both} The hybrid is not much worse than {old} and costs less than its better part: {difference}."


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
    return f"The {candidate} has not been shown to be better"


def _score(verdict: Verdict, score: float) -> str:
    """Return a score as a percentage, or as a number with its metric."""
    return f"{100 * score:.1f}%" if verdict.metric in PERCENTAGES else f"{METRIC_NAMES[verdict.metric]} {score:.3f}"


def _difference(gain: float, interval: tuple[float, float]) -> str:
    """Return a gain with its interval, in points."""
    low, high = (f"{100 * end:+.1f}" for end in interval)
    return f"{100 * gain:+.1f} points (interval {low} to {high})"
