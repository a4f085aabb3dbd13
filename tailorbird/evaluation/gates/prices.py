"""The cost of serving and training a model, from its measured resources and the recipe's prices."""

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from tailorbird.config.evaluation import CostConfig, EvaluationConfig
from tailorbird.config.serving import ServingConfig
from tailorbird.evaluation.gates.cost import (
    SECONDS_PER_HOUR,
    CostPair,
    SecondsUnit,
    ServingCosts,
    ServingUsage,
    Tokens,
    TrainingUsage,
    endpoint_name,
)
from tailorbird.evaluation.statistics.distributions import t_isf
from tailorbird.registry.endpoint import Endpoint

HOURS_PER_MONTH = 730
CostUnit = SecondsUnit | Literal["price"]
Ratio = tuple[float, float, float]
"""A ratio of costs: estimate, lower and upper end of its interval."""


class CostTerms(CostConfig):
    """The prices of a test protocol, with the replicas that serve and the prices of the external endpoint."""

    min_replicas: int = Field(default=0, ge=0)
    cpus_per_replica: int = Field(default=1, ge=1)
    gpus_per_replica: float = Field(default=0, ge=0)
    endpoint: str | None = None
    """The endpoint of the recipe (`cost.endpoint_name`), to which `token_prices` apply."""
    token_prices: tuple[float, float] | None = None
    """Prices of 1,000 input and 1,000 output tokens; None if they are not stated."""

    @classmethod
    def of_recipe(cls, evaluation: EvaluationConfig, *, serving: ServingConfig) -> Self | None:
        """Return the terms of a recipe; None if it has no `evaluation.cost`."""
        if evaluation.cost is None:
            return None
        terms = cls(
            **evaluation.cost.model_dump(),
            min_replicas=serving.min_replicas,
            cpus_per_replica=serving.cpus_per_replica,
            gpus_per_replica=serving.gpus_per_replica,
        )
        if evaluation.endpoint is None:
            return terms
        endpoint = Endpoint.from_config(evaluation.endpoint)
        name = endpoint_name(endpoint.model, url=endpoint.url)
        return terms.model_copy(update={"endpoint": name, "token_prices": endpoint.prices})

    @property
    def requests(self) -> float:
        """Number of requests over the horizon."""
        return self.requests_per_month * self.horizon_months

    def missing(self, *, uses_cpu: bool, uses_gpu: bool) -> list[str]:
        """Return the prices of the devices that are used and have none, one phrase each."""
        is_used = {"price_per_cpu_hour": uses_cpu, "price_per_gpu_hour": uses_gpu}
        return [
            f"evaluation.cost.{name} is not set" for name in is_used if is_used[name] and getattr(self, name) is None
        ]

    def per_hour(self, *, cpus: float, gpus: float) -> float:
        """Return the price of CPU cores and GPUs for an hour, of which none is `missing`."""
        return cpus * (self.price_per_cpu_hour or 0) + gpus * (self.price_per_gpu_hour or 0)

    def prices_of(self, tokens: Tokens) -> tuple[float, float] | None:
        """Return the prices of 1,000 tokens: the recipe's if it has those of the endpoint, else the version's."""
        if tokens.endpoint == self.endpoint and self.token_prices is not None:
            return self.token_prices
        return tokens.prices


@dataclass(frozen=True)
class ServingPrice:
    """The cost of serving one model over the horizon, in the recipe's currency, one value per round [K]."""

    replicas: NDArray[np.float64]  # of the hours for which they are paid, busy or idle
    tokens: NDArray[np.float64]

    @property
    def total(self) -> NDArray[np.float64]:
        return self.replicas + self.tokens


def missing_for_serving(usage: ServingUsage, *, terms: CostTerms) -> tuple[str, ...]:
    """Return what prevents a price for serving, one phrase each: a missing price, or a missing measurement."""
    tokens = usage.tokens
    is_on_gpu = usage.gpu_s is not None
    # If an external endpoint answers all rows, its replicas have no GPU.
    needs_gpu = terms.gpus_per_replica > 0 and (is_on_gpu or tokens is None)
    missing = terms.missing(uses_cpu=True, uses_gpu=needs_gpu)
    if needs_gpu != is_on_gpu:
        missing.append("serving.gpus_per_replica has changed between the registration of the run and the measurement")
    if tokens is not None and not tokens.reported:
        missing.append(f"{tokens.endpoint} does not report its tokens")
    if tokens is not None and terms.prices_of(tokens) is None:
        missing.append(f"evaluation.endpoint has no price_input and price_output for {tokens.endpoint}")
    return tuple(missing)


def missing_for_training(training: TrainingUsage, *, terms: CostTerms) -> tuple[str, ...]:
    """Return the prices that are missing for a training, one phrase each."""
    return tuple(terms.missing(uses_cpu=training.cpu_s > 0, uses_gpu=training.gpu_s > 0))


def price_serving(usage: ServingUsage, *, terms: CostTerms) -> ServingPrice:
    """Return the cost of serving one model at the recipe's volume.

    A replica is paid from its start to its stop, with all of its CPU cores and GPUs. The paid replica-hours of a month
    are the larger of two numbers: those of `min_replicas` that always run, and those in which the CPU cores or GPUs of
    one replica are busy with the month's requests. Busy time within the replicas that run anyway costs nothing more.
    The replicas of an external endpoint have no GPU.

    Raises ValueError if a price or a measurement is missing: see `missing_for_serving`.
    """
    _require_known(missing_for_serving(usage, terms=terms))
    busy_s = np.array(usage.cpu_s) / terms.cpus_per_replica
    gpus = 0.0
    if usage.gpu_s is not None:
        gpus = terms.gpus_per_replica
        busy_s = np.maximum(busy_s, np.array(usage.gpu_s) / gpus)
    busy_hours = busy_s / SECONDS_PER_HOUR * terms.requests_per_month / 1000
    paid_hours = np.maximum(busy_hours, terms.min_replicas * HOURS_PER_MONTH)
    replicas = paid_hours * terms.horizon_months * terms.per_hour(cpus=terms.cpus_per_replica, gpus=gpus)
    prices = usage.tokens and terms.prices_of(usage.tokens)
    if usage.tokens is None or prices is None:
        return ServingPrice(replicas, np.zeros_like(replicas))
    per_thousand = np.array((usage.tokens.input, usage.tokens.output)).T @ prices / 1000
    return ServingPrice(replicas, per_thousand * terms.requests / 1000)


def price_training(training: TrainingUsage, *, terms: CostTerms) -> float:
    """Return the cost of a training; raise ValueError if a price is missing: see `missing_for_training`."""
    _require_known(missing_for_training(training, terms=terms))
    return terms.per_hour(cpus=training.cpu_s, gpus=training.gpu_s) / SECONDS_PER_HOUR


def _require_known(missing: tuple[str, ...]) -> None:
    """Raise ValueError if a price is missing, because nothing that is used is free."""
    if missing:
        raise ValueError(f"the cost is not assessable: {'; '.join(missing)}")


def mean_interval(values: NDArray[np.float64], *, alpha: float) -> tuple[float, float]:
    """Return the mean over rounds [K] and half the width of Student's t interval, two-sided at level 1 - alpha."""
    half = t_isf(alpha / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean()), float(half)


def cost_ratio(pair: CostPair, *, alpha: float, terms: CostTerms | None = None) -> Ratio | None:
    """Return the candidate's cost of serving divided by the incumbent's, with a 1 - alpha interval.

    With `terms`, the costs are those of `price_serving`. Without, they are the seconds of the device that serves: no
    volume is known, so idle replicas cannot be counted. Return None if the costs cannot be compared: a price is
    missing, or without prices one model uses tokens or another kind of device.

    The estimate is the geometric mean over the rounds. The interval is Student's t on the logarithms of the ratios per
    round, because the load of the machine in a round affects both models.
    """
    sides = (pair.candidate, pair.incumbent)
    if terms is None:
        if pair.candidate.unit != pair.incumbent.unit or any(usage.tokens is not None for usage in sides):
            return None
        ours, theirs = (np.array(usage.device_s) for usage in sides)
    else:
        if any(missing_for_serving(usage, terms=terms) for usage in sides):
            return None
        ours, theirs = (price_serving(usage, terms=terms).total for usage in sides)
    if not ours.all() or not theirs.all():
        return None  # every price that applies is 0
    mean, half = mean_interval(np.log(ours / theirs), alpha=alpha)
    estimate, low, high = np.exp([mean, mean - half, mean + half])
    return float(estimate), float(low), float(high)


def cost_unit(costs: ServingCosts, *, terms: CostTerms | None) -> CostUnit:
    """Return what `cost_ratio` compares."""
    if terms is not None:
        return "price"
    units = {usage.unit for usage in costs.values()}
    return "GPU-seconds" if "GPU-seconds" in units else "CPU-seconds"
