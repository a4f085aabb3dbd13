"""How one model compares with another on the same rows: proven better, non-inferior, cheaper, and
what follows."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from tailorbird.config.metrics import row_metric
from tailorbird.evaluation.gates.base import Interval
from tailorbird.evaluation.gates.cost import NO_TRAINING, ServingCosts, TrainingUsage
from tailorbird.evaluation.gates.prices import (
    ContenderCost,
    CostComparison,
    Ratio,
    compare_costs,
    contender_cost,
    yearly_cost,
)
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.verdict.formatting import gain_text
from tailorbird.evaluation.verdict.protocol import TestProtocol

CHEAPER_RATIO = 0.9
"""A model is cheaper if the interval of its cost divided by the other model's ends below this."""


@dataclass(frozen=True)
class Relation:
    """The first model compared with the second; gains are the first model's score minus the
    second's, as shares."""

    first: str  # role
    second: str  # role
    gain: float
    interval: Interval  # two-sided at 1 - `level`
    lowest: float  # lower end of the gain in the test of non-inferiority
    level: float
    # proven better: the interval is above 0, the gain is at least `minimum_gain`, the net not
    # negative
    is_better: bool
    is_non_inferior: bool
    is_cheaper: bool  # in prices; False without `evaluation.cost`
    is_out_of_reach: bool  # more rows would not make the first model dominate the second
    is_anchored: bool = True
    """False if the first model may not replace any for its cost, because it is not non-inferior to
    the anchor."""
    cost_ratio: Ratio | None = None  # the first model's cost of serving divided by the second's
    net: float | None = (
        None  # value of the gain minus all further cost, of a year in the recipe's currency
    )
    net_interval: Interval | None = None
    p_value: float | None = None  # two-sided; no decision reads it
    only_first_right: int = 0  # rows
    only_second_right: int = 0

    @property
    def dominates(self) -> bool:
        """True if the first model deserves to replace the second."""
        return self.is_better or (self.is_non_inferior and self.is_cheaper and self.is_anchored)

    def gain_text(self, *more: str) -> str:
        """Return the gain with its interval, and with `more` in the parenthesis."""
        return gain_text(self.gain, self.interval, level=self.level, more=more)


Relate = Callable[[str, str, int], Relation]
"""Returns the relation of the models in two roles, with intervals at alpha divided by the last
argument."""


@dataclass(frozen=True)
class Gain:
    """What a relation needs of a comparison; see `Relation`."""

    gain: float
    interval: Interval
    lowest: float
    level: float
    priced: tuple[float, Interval]
    """The gain that the recipe prices, and its interval: see `row_metric`."""


def relation_of(
    roles: tuple[str, str],
    gain: Gain,
    *,
    cost: CostComparison,
    protocol: TestProtocol,
    is_anchored: bool = True,
) -> Relation:
    """Return the relation of the models in two roles.

    Where the recipe names prices and the value of a correct answer, a model with a negative net is
    neither proven better nor cheaper. Unknown costs are "not cheaper".
    """
    priced, priced_interval = gain.priced
    net = None
    net_interval = None
    can_pay = True
    if cost.net is not None:
        net = cost.net.at(priced)
        net_interval = cost.net.interval(priced, gain_interval=priced_interval)
        can_pay = cost.net.at(priced_interval[1]) > 0
    pays = net is None or net > 0
    is_above = gain.interval[0] > 0 and gain.gain >= protocol.minimum_gain
    has_lower_cost = (
        protocol.cost is not None and cost.ratio is not None and cost.ratio[2] < CHEAPER_RATIO
    )
    if has_lower_cost:
        needed = -protocol.non_inferiority_margin
    else:
        needed = protocol.minimum_gain
    return Relation(
        first=roles[0],
        second=roles[1],
        gain=gain.gain,
        interval=gain.interval,
        lowest=gain.lowest,
        level=gain.level,
        is_better=is_above and pays,
        is_non_inferior=gain.lowest > -protocol.non_inferiority_margin,
        is_cheaper=has_lower_cost and pays,
        is_out_of_reach=gain.interval[1] < needed or not can_pay,
        is_anchored=is_anchored,
        cost_ratio=cost.ratio,
        net=net,
        net_interval=net_interval,
    )


@dataclass(frozen=True)
class CostTable:
    """The measured resources of all models by role, with the prices of the protocol."""

    serving: ServingCosts | None  # None if they were not measured
    training: Mapping[str, TrainingUsage]  # of the models that this run trained
    protocol: TestProtocol
    alpha: float

    def pair(self, first: str, second: str, *, alpha: float | None = None) -> CostComparison:
        """Return the cost of serving the model in one role instead of the other, by default at the
        table's level."""
        return compare_costs(
            self.serving,
            terms=self.protocol.cost,
            alpha=self.alpha if alpha is None else alpha,
            training=self.training.get(first, NO_TRAINING),
            roles=(first, second),
        )

    def contenders(self, roles: Sequence[str]) -> tuple[ContenderCost, ...]:
        """Return the cost of the measured models in these roles; empty without prices."""
        terms = self.protocol.cost
        serving = self.serving
        if terms is None or serving is None:
            return ()
        costs = {
            role: yearly_cost(
                serving[role], terms=terms, training=self.training.get(role, NO_TRAINING)
            )
            for role in roles
            if role in serving
        }
        return tuple(contender_cost(role, cost, alpha=self.alpha) for role, cost in costs.items())


def relations(
    tables: Mapping[str, Predictions],
    *,
    costs: CostTable,
    can_replace_for_cost: Callable[[str], bool] = lambda _: True,
) -> tuple[Relate, dict[tuple[str, str, int], Relation]]:
    """Return a function that compares the models in two roles, and the relations that it has
    computed.

    `can_replace_for_cost` tells whether the model in a role is non-inferior to the anchor.
    """
    known: dict[tuple[str, str, int], Relation] = {}

    def relate(first: str, second: str, share: int = 1) -> Relation:
        key = (first, second, share)
        if key not in known:
            known[key] = _compared(
                tables, key, costs=costs, is_anchored=can_replace_for_cost(first)
            )
        return known[key]

    return relate, known


def _compared(
    tables: Mapping[str, Predictions],
    key: tuple[str, str, int],
    *,
    costs: CostTable,
    is_anchored: bool,
) -> Relation:
    first, second, share = key
    level = costs.alpha / share
    metric = costs.protocol.metric
    comparison = compare(tables[first], other=tables[second], metric=metric, alpha=level)
    cost = costs.pair(first, second)
    priced = comparison
    if cost.net is not None and row_metric(metric) != metric:
        priced = compare(
            tables[first], other=tables[second], metric=row_metric(metric), alpha=level
        )
    gain = Gain(
        gain=comparison.gain,
        interval=comparison.interval,
        lowest=comparison.lowest,
        level=level,
        priced=(priced.gain, priced.interval),
    )
    relation = relation_of(
        (first, second), gain, cost=cost, protocol=costs.protocol, is_anchored=is_anchored
    )
    return replace(
        relation,
        p_value=comparison.p_value,
        only_first_right=comparison.counts.only_candidate_right,
        only_second_right=comparison.counts.only_other_right,
    )
