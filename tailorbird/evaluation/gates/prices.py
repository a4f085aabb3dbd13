"""What models cost and whether a gain pays: one ratio and one yearly net, from measured resources
and prices."""

import math
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tailorbird.config.evaluation import CostConfig, EvaluationConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.base import Bound, Gate, Interval, State, gate, rows_needed
from tailorbird.evaluation.gates.cost import (
    NO_TRAINING,
    SECONDS_PER_HOUR,
    SecondsUnit,
    ServingCosts,
    ServingUsage,
    Tokens,
    TrainingUsage,
    endpoint_name,
)
from tailorbird.evaluation.statistics.distributions import t_isf
from tailorbird.evaluation.statistics.paired import Comparison

MONTHS_PER_YEAR = 12
HOURS_PER_MONTH = 730
CostUnit = SecondsUnit | Literal["price"]
FloatArray = NDArray[np.float64]
Ratio = tuple[float, float, float]
"""A ratio of costs: estimate, lower and upper end of its interval."""


class CostTerms(CostConfig):
    """The prices of a test protocol, with the replicas that serve and the prices of the external
    endpoint."""

    min_replicas: int = Field(default=0, ge=0)
    cpus_per_replica: int = Field(default=1, ge=1)
    gpus_per_replica: float = Field(default=0, ge=0)
    token_prices: dict[str, tuple[float, float] | None] = Field(default_factory=dict)
    """Prices of 1,000 input and 1,000 output tokens of the recipe's endpoints, by `endpoint_name`;
    None if they are not stated."""

    @classmethod
    def from_recipe(cls, evaluation: EvaluationConfig, *, serving: ServingConfig) -> Self | None:
        """Return the terms of a recipe; None if it has no `evaluation.cost`."""
        if evaluation.cost is None:
            return None
        prices = {}
        for endpoint in evaluation.endpoints.values():
            prices[endpoint_name(endpoint.model, url=endpoint.url)] = endpoint.prices
        return cls(
            **evaluation.cost.model_dump(),
            min_replicas=serving.min_replicas,
            cpus_per_replica=serving.cpus_per_replica,
            gpus_per_replica=serving.gpus_per_replica,
            token_prices=prices,
        )

    @property
    def requests_per_year(self) -> float:
        return self.requests_per_month * MONTHS_PER_YEAR

    def missing(self, *, cpus: float, gpus: float) -> tuple[str, ...]:
        """Return the prices of the devices that are used and have none, one phrase each."""
        prices = {
            "price_per_cpu_hour": self.price_per_cpu_hour if cpus else 0,
            "price_per_gpu_hour": self.price_per_gpu_hour if gpus else 0,
        }
        return tuple(
            f"evaluation.cost.{name} is not set" for name, price in prices.items() if price is None
        )

    def per_hour(self, *, cpus: float, gpus: float) -> float:
        """Return the price of CPU cores and GPUs for an hour, of which none is `missing`."""
        return cpus * (self.price_per_cpu_hour or 0) + gpus * (self.price_per_gpu_hour or 0)

    def prices_of(self, tokens: Tokens) -> tuple[float, float] | None:
        """Return the prices of 1,000 tokens: the recipe's if it has those of the endpoint, else the
        version's."""
        return self.token_prices.get(tokens.endpoint) or tokens.prices


@dataclass(frozen=True)
class YearlyCost:
    """The cost of one model for a year, in the recipe's currency.

    `missing` and `missing_for_training` name the prices that are not set and the measurements that
    were not made. If there are any, the numbers that need them mean nothing.
    """

    replicas: FloatArray  # [K] by round, of the hours for which they are paid, busy or idle
    tokens: FloatArray  # [K] of an external endpoint
    training: float  # of this run
    missing: tuple[str, ...] = ()
    missing_for_training: tuple[str, ...] = ()

    @property
    def serving(self) -> FloatArray:
        return self.replicas + self.tokens


def yearly_cost(
    usage: ServingUsage, *, terms: CostTerms, training: TrainingUsage = NO_TRAINING
) -> YearlyCost:
    """Return the cost of a model for a year at the recipe's volume.

    A replica is paid from its start to its stop, with all of its CPU cores and GPUs. The paid
    replica-hours of a month are those of the replicas that always run, or if these are more, the
    hours in which the cores, or the GPUs, of one replica are busy with the month's requests. Busy
    time within the replicas that run anyway costs nothing more.
    """
    tokens = usage.tokens
    is_on_gpu = usage.gpu_s is not None
    # If an external endpoint answers all rows, its replicas have no GPU.
    gpus = terms.gpus_per_replica if is_on_gpu or tokens is None else 0.0
    missing = [*terms.missing(cpus=terms.cpus_per_replica, gpus=gpus)]
    if is_on_gpu != (gpus > 0):
        missing.append(
            "serving.gpus_per_replica has changed between the registration of the run and the "
            "measurement"
        )

    busy_s = np.array(usage.cpu_s) / terms.cpus_per_replica
    if gpus:
        busy_s = np.maximum(busy_s, np.array(usage.device_s) / gpus)
    busy_hours = busy_s / SECONDS_PER_HOUR * terms.requests_per_month / 1000
    paid_hours = np.maximum(busy_hours, terms.min_replicas * HOURS_PER_MONTH) * MONTHS_PER_YEAR

    paid_tokens = np.zeros_like(paid_hours)
    if tokens is not None:
        prices = terms.prices_of(tokens)
        if not tokens.reported:
            missing.append(f"{tokens.endpoint} does not report its tokens")
        if prices is None:
            missing.append(f"evaluation.contenders has no prices for {tokens.endpoint}")
        elif tokens.reported:
            per_thousand = np.array((tokens.input, tokens.output)).T @ prices / 1000
            paid_tokens = per_thousand * terms.requests_per_year / 1000

    trained = terms.per_hour(cpus=training.cpu_s, gpus=training.gpu_s) / SECONDS_PER_HOUR
    return YearlyCost(
        replicas=paid_hours * terms.per_hour(cpus=terms.cpus_per_replica, gpus=gpus),
        tokens=paid_tokens,
        training=trained,
        missing=tuple(missing),
        missing_for_training=terms.missing(cpus=training.cpu_s, gpus=training.gpu_s),
    )


@dataclass(frozen=True)
class YearlyNet:
    """What one model is worth more than another in a year, in the recipe's currency, by its
    gain."""

    value_of_one: float  # value of a gain of 1 (100 points)
    training: float
    saving: float  # in serving
    half_saving: float = 0.0  # half the width of the saving's interval

    def at(self, gain: float) -> float:
        """Return the net at a gain: its value - cost of training + saving in serving."""
        return self.value_of_one * gain - self.training + self.saving

    def interval(self, gain: float, *, gain_interval: Interval) -> Interval:
        """Return the interval from those of the gain and of the saving, by square-and-add (they are
        independent)."""
        low, high = gain_interval
        below = math.hypot(self.value_of_one * (gain - low), self.half_saving)
        above = math.hypot(self.value_of_one * (high - gain), self.half_saving)
        return self.at(gain) - below, self.at(gain) + above


@dataclass(frozen=True)
class CostComparison:
    """The cost of serving one model instead of another: a ratio and a yearly net, None if they are
    not known."""

    ratio: Ratio | None = None  # of the costs of serving, without the training
    net: YearlyNet | None = None  # None without prices, too
    missing: tuple[str, ...] = ()  # prices and measurements without which there is no net


def compare_costs(
    costs: ServingCosts | None,
    *,
    terms: CostTerms | None,
    alpha: float,
    training: TrainingUsage = NO_TRAINING,
    roles: tuple[str, str] = ("candidate", "incumbent"),
) -> CostComparison:
    """Return the cost of the model in the first role compared with the second, with intervals at
    level 1 - alpha.

    `training` is that of the first model. Without `terms`, costs are the seconds of the device that
    serves: no volume is known, so idle replicas cannot be counted, and a model that uses tokens or
    another kind of device has no ratio.
    """
    if costs is None or any(role not in costs for role in roles):
        return CostComparison(missing=("the serving cost is not measured",))
    first = costs[roles[0]]
    second = costs[roles[1]]
    rounds = [len(usage.cpu_s) for usage in (first, second)]
    if rounds[0] != rounds[1]:
        raise ValueError(
            f"{' and '.join(roles)} have {rounds} rounds; measure both in the same rounds"
        )
    if terms is None:
        if first.unit != second.unit or first.tokens is not None or second.tokens is not None:
            return CostComparison()
        return CostComparison(
            _ratio(np.array(first.device_s), np.array(second.device_s), alpha=alpha)
        )

    first_cost = yearly_cost(first, terms=terms, training=training)
    second_cost = yearly_cost(second, terms=terms)
    missing = (*first_cost.missing, *second_cost.missing)
    if missing:
        ratio = None
    else:
        ratio = _ratio(first_cost.serving, second_cost.serving, alpha=alpha)
    if missing or first_cost.missing_for_training:
        return CostComparison(
            ratio, missing=tuple(dict.fromkeys((*missing, *first_cost.missing_for_training)))
        )
    saving, half = mean_interval(second_cost.serving - first_cost.serving, alpha=alpha)
    value = terms.value_of_correct * terms.requests_per_year
    return CostComparison(
        ratio,
        YearlyNet(
            value_of_one=value, training=first_cost.training, saving=saving, half_saving=half
        ),
    )


def _ratio(first_cost: FloatArray, second_cost: FloatArray, *, alpha: float) -> Ratio | None:
    """Return the ratio of costs by round [K]; None if every price that applies to a model is 0.

    The estimate is the geometric mean over the rounds. The interval is Student's t on the
    logarithms of the ratios per round, because the load of the machine in a round affects both
    models.
    """
    if not first_cost.all() or not second_cost.all():
        return None
    mean, half = mean_interval(np.log(first_cost / second_cost), alpha=alpha)
    estimate, low, high = np.exp([mean, mean - half, mean + half])
    return float(estimate), float(low), float(high)


def mean_interval(values: FloatArray, *, alpha: float) -> tuple[float, float]:
    """Return the mean over rounds [K] and half the width of Student's t interval, two-sided at
    level 1 - alpha."""
    half = t_isf(alpha / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def cost_unit(costs: ServingCosts | None, *, terms: CostTerms | None) -> CostUnit | None:
    """Return what the ratios of `compare_costs` compare; None if nothing was measured."""
    if costs is None:
        return None
    if terms is not None:
        return "price"
    units = {usage.unit for usage in costs.values()}
    if "GPU-seconds" in units:
        return "GPU-seconds"
    return "CPU-seconds"


@dataclass(frozen=True)
class ContenderCost:
    """The cost of a model for a year at the recipe's volume, in the recipe's currency; None if it
    is not known."""

    role: str
    missing: tuple[str, ...] = ()
    """Prices that are not set and measurements that were not made. If there are any, no number is
    known."""
    total: float | None = None
    """Sum of `replicas`, `tokens` and `training`."""
    interval: Interval | None = None
    """Of the total: Student's t over the rounds, two-sided at level 1 - alpha."""
    replicas: float | None = None
    """Cost of the paid replica-hours, busy or idle."""
    tokens: float | None = None
    """Cost of the tokens of an external endpoint."""
    training: float | None = None
    """Cost of the training of this run, with the sweep, paid in one year; 0 for a model
    that this run did not train."""


def contender_cost(role: str, cost: YearlyCost, *, alpha: float) -> ContenderCost:
    """Return the cost of the model in a role as the mean over the rounds."""
    missing = tuple(dict.fromkeys((*cost.missing, *cost.missing_for_training)))
    if missing:
        return ContenderCost(role, missing)
    serving, half = mean_interval(cost.serving, alpha=alpha)
    total = serving + cost.training
    return ContenderCost(
        role,
        total=total,
        interval=(total - half, total + half),
        replicas=float(cost.replicas.mean()),
        tokens=float(cost.tokens.mean()),
        training=cost.training,
    )


def cost_gate(main: Comparison, *, cost: CostComparison) -> Gate:
    """Return the cost gate: it passes if the interval of the yearly net is above 0, and fails if it
    is not above 0.

    It is not assessable if the interval contains 0, or if a price or a measurement is missing. The
    gain is a share of correct answers, because the recipe states the value of a correct answer.
    `main` is therefore the comparison in accuracy, also if the recipe's metric is macro-F1. For
    chat tasks, it is the comparison in the recipe's metric, and a point of the metric has the price
    of a point of accuracy.
    """
    net = cost.net
    n = main.counts.n
    if net is None:
        return Gate(
            name="cost", state=State.NOT_ASSESSABLE, bounds=(), note="; ".join(cost.missing)
        )
    low, high = net.interval(main.gain, gain_interval=main.interval)
    state = State.NOT_ASSESSABLE
    if low > 0:
        state = State.PASSES
    elif high <= 0:
        state = State.FAILS
    if state is State.NOT_ASSESSABLE:
        needed = _rows_needed(main, net=net)
    else:
        needed = None
    bound = Bound(
        what="yearly net",
        estimate=net.at(main.gain),
        interval=(low, high),
        limit=0.0,
        n=n,
        state=state,
        rows_needed=needed,
    )
    parts = f"gain {net.value_of_one * main.gain:+,.2f}, training {-net.training:+,.2f}"
    note = (
        f"a year, in the recipe's currency: {parts}, serving {net.saving:+,.2f} (+- "
        f"{net.half_saving:,.2f})"
    )
    if main.gain != main.counts.gain:
        note += (
            "; the gain is not measured in accuracy, so each point is priced like a point of "
            "accuracy"
        )
    return gate("cost", (bound,), note=note)


def _rows_needed(main: Comparison, *, net: YearlyNet) -> int | None:
    """Return the rows that decide the gate at the same estimates; None if the saving's interval
    alone contains 0.

    The width of the gain's interval decreases with the square root of the rows, that of the saving
    does not.
    """
    distance = abs(net.at(main.gain)) / net.value_of_one
    half_saving = net.half_saving / net.value_of_one
    if distance <= half_saving:
        return None
    left = math.sqrt((distance - half_saving) * (distance + half_saving))
    return rows_needed(main.counts.n, half=(main.interval[1] - main.interval[0]) / 2, distance=left)
