"""The parts of a verdict."""

from pydantic import BaseModel, ConfigDict

from tailorbird.evaluation.gates.base import Gate
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


class FamilyVerdict(VerdictPart):
    """The evaluation of a model of the family other than the candidate, by the same tests as the candidate."""

    score: float
    gain: float
    interval: tuple[float, float]
    """Of the gain over the incumbent, two-sided at 1 - `level`."""
    level: float
    """The level at which Holm's method tests this gain (see `verdict.family`)."""
    p_value: float
    p_holm: float
    """p value adjusted by Holm's method over all contenders of the family."""
    proven: bool
    gates: tuple[Gate, ...]
    """Empty for a further contender that is not proven."""
    against_candidate: Difference
    """The score of this model minus the candidate's."""
    candidate_cost: tuple[float, float, float] | None
    """Cost of serving, candidate divided by this model: estimate and 1 - alpha interval."""


class ContenderVerdict(FamilyVerdict):
    """The evaluation of a further contender: a baseline that is tested against the incumbent with the candidate."""

    role: str
    """Role in the evidence: the kind of the baseline."""
    kind: str
    eligible: bool
    """True if the contender is proven better than the incumbent and no gate stops it."""


class HybridPart(VerdictPart):
    """A part of the hybrid, with its scores alone."""

    role: str
    kind: str
    score: float
    """Score on the test rows."""
    hybrid_gain: Difference
    """The hybrid's score minus that of the part."""


class HybridVerdict(FamilyVerdict):
    """The evaluation of the hybrid that was fitted on validation."""

    routing: Routing
    first: HybridPart
    """The part that answers first in a cascade; the incumbent if the routing is by group."""
    second: HybridPart
    share_to_second: float
    """Share of the test rows that the second part answers."""
    validation: float
    """Score on validation."""
    validation_share_to_second: float
    """Share of the validation rows that the second part answers."""
    best_part: str
    """Role of the part with the higher score on validation."""
    cost_ratio: tuple[float, float, float] | None
    """Cost of serving, hybrid divided by its best part: estimate and 1 - alpha interval."""
    holds: bool
    """True if the hybrid is non-inferior to the incumbent and its parts, and costs less than the best part or is proven
    better."""

    @property
    def parts(self) -> tuple[HybridPart, HybridPart]:
        """Both parts, the first one first."""
        return self.first, self.second

    @property
    def lowest(self) -> float:
        """The lowest end of the intervals of the gains over the incumbent and over each part."""
        others = [part.hybrid_gain.interval[0] for part in self.parts if part.role != "incumbent"]
        return min(self.interval[0], *others)


class GainOverSelected(VerdictPart):
    """The score of a contender minus that of the selected model, tested by Holm's method over the other contenders."""

    gain: float
    interval: tuple[float, float]
    """Two-sided at 1 - `level`."""
    level: float

    @property
    def not_worse(self) -> bool:
        """True if the contender is not shown to be worse: the interval does not end below 0."""
        return self.interval[1] >= 0

    def is_above(self, limit: float) -> bool:
        """Return True if the whole interval is above the limit."""
        return self.interval[0] > limit


class CostDifference(VerdictPart):
    """The total of a contender minus that of the selected model."""

    estimate: float
    interval: tuple[float, float]
    """Student's t over paired rounds, two-sided at level 1 - alpha."""


class ContenderCost(VerdictPart):
    """The cost of a contender at the recipe's volume over the horizon, in the recipe's currency."""

    role: str
    missing: tuple[str, ...] = ()
    """Prices that are not set and measurements that were not made. If there are any, no number is known."""
    total: float | None = None
    """Sum of `replicas`, `tokens`, `storage` and `training`."""
    interval: tuple[float, float] | None = None
    """Of the total: Student's t over the rounds, two-sided at level 1 - alpha."""
    replicas: float | None = None
    """Cost of the paid replica-hours, busy or idle."""
    busy: float | None = None
    """Part of `replicas` for the hours in which a replica answers requests."""
    replica_hours: float | None = None
    """Paid replica-hours per month."""
    tokens: float | None = None
    """Cost of the tokens of an external endpoint."""
    storage: float | None = None
    """Cost of storing the version; None if the total is not known. Former releases left it out without a price."""
    training: float | None = None
    """Cost of the training of this run, with the sweep; 0 for a model that this run did not train."""
    difference: CostDifference | None = None
    """None for the selected model, and if one of the two totals is not known."""
    gain: GainOverSelected | None = None
    """None for the selected model."""


class SecondMetric(VerdictPart):
    """The comparison by a second metric, which no rule reads."""

    metric: str
    incumbent: float
    candidate: float
    gain: float
    interval: tuple[float, float]
    p_value: float
