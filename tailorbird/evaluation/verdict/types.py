"""The verdict and its parts."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from tailorbird.evaluation.gates.base import Gate
from tailorbird.evaluation.statistics.posterior import Posterior
from tailorbird.evaluation.verdict.formatting import p_text, points
from tailorbird.evaluation.verdict.headline import headline
from tailorbird.evaluation.verdict.rules import OUTCOME_OF_RULE, Outcome
from tailorbird.registry.routing import Routing


class VerdictPart(BaseModel):
    """Base class of frozen models without unknown fields; every number is finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Difference(VerdictPart):
    """A paired difference of two models in the verdict's metric, with an interval at level 1 - alpha."""

    gain: float
    interval: tuple[float, float]
    p_value: float
    proven: bool
    """True if p < alpha, the interval is above 0, and the gain is at least `minimum_gain`."""


class ContenderVerdict(VerdictPart):
    """The evaluation of a further contender: a baseline that is tested against the incumbent with the candidate."""

    role: str
    """Role in the evidence: the kind of the baseline."""
    kind: str
    score: float
    gain: float
    interval: tuple[float, float]
    """Of the gain over the incumbent, at the level of Holm's test."""
    p_value: float
    p_holm: float
    """p value adjusted by Holm's method over all contenders of the family."""
    proven: bool
    eligible: bool
    """True if the contender is proven better than the incumbent and no gate stops it."""
    gates: tuple[Gate, ...]
    """Gates of a proven contender; empty for other contenders."""
    against_candidate: Difference
    """The contender's score minus the candidate's."""
    candidate_cost: tuple[float, float, float] | None
    """CPU-seconds per row, candidate divided by this contender: estimate and 1 - alpha interval."""


class HybridVerdict(VerdictPart):
    """The evaluation of the hybrid that was fitted on validation, by the same tests as the candidate."""

    routing: Routing
    share_to_candidate: float
    """Share of the test rows that the candidate answers."""
    score: float
    gain: float
    interval: tuple[float, float]
    """Of the gain over the incumbent, at the level of Holm's test."""
    p_value: float
    p_holm: float
    """p value adjusted by Holm's method over all contenders of the family."""
    proven: bool
    gates: tuple[Gate, ...]
    against_candidate: Difference
    """The hybrid's score minus the candidate's."""
    candidate_cost: tuple[float, float, float] | None
    """CPU-seconds per row, candidate divided by hybrid: estimate and 1 - alpha interval."""
    best_part: Literal["incumbent", "candidate"]
    """The part with the higher score on validation."""
    cost_ratio: tuple[float, float, float] | None
    """CPU-seconds per row, hybrid divided by its best part: estimate and 1 - alpha interval."""
    holds: bool
    """True if the hybrid is not inferior to its parts, and costs less than the best part or is proven better."""


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
    """Power of the whole rule at the expected gain and the observed discordance."""
    rows_needed: int | None
    """Rows for 80% power of the whole rule at the expected gain; None if no number is enough."""
    proven: bool
    """True if the adjusted p < alpha, the gain is at least `minimum_gain`, and the interval is above 0."""
    posterior: Posterior
    """The posterior of the gain, which no rule reads."""
    gates: tuple[Gate, ...]
    """Gates of the candidate."""
    cost_ratio: tuple[float, float, float] | None
    """CPU-seconds per row, candidate divided by incumbent: estimate and 1 - alpha interval; None if not measured."""
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
        changed = {Outcome.FINE_TUNE: "candidate", Outcome.HYBRID: "hybrid"}.get(self.outcome)
        return changed or self.replacement or "incumbent"

    @property
    def family_size(self) -> int:
        """The number of contenders tested against the incumbent."""
        return 1 + (self.hybrid is not None) + len(self.contenders)

    @property
    def contender(self) -> ContenderVerdict | None:
        """The contender that replaces the incumbent."""
        return next((contender for contender in self.contenders if contender.role == self.replacement), None)

    def sentence(self) -> str:
        """Return the model to use and the difference between the two models, without statistical terms."""
        return headline(self)

    def access(self) -> str:
        """Return the number of the access to the test rows, with the level if it is not the first."""
        level = "" if self.access_number == 1 else f": alpha {self.alpha:.2g} instead of {self.protocol_alpha:g}"
        return f"access {self.access_number} to these rows{level}"

    def numbers(self) -> str:
        """Return one line: outcome, gain in points, interval, p, n, rule."""
        low, high = self.interval
        interval = f"{100 * (1 - self.alpha):.4g}% interval {points(low)} to {points(high)}"
        later = "" if self.access_number == 1 else f"; {self.access()}"
        family = f" after Holm's correction for {self.family_size} contenders" if self.family_size > 1 else ""
        measured = f"{interval}, {p_text(self.p_holm)}{family}, n = {self.n:,}"
        return f"{self.outcome}: {points(self.gain)} points ({measured}), by rule {self.rule}{later}"
