"""The cost of serving and training a model, from its measured resources and the recipe's prices."""

from collections.abc import Sequence
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
    ServingUsage,
    Tokens,
    TrainingUsage,
    endpoint_name,
)
from tailorbird.evaluation.statistics.distributions import t_ppf

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
    """The endpoint of the recipe (`cost.endpoint_name`), to which the prices of tokens apply."""
    price_input: float | None = Field(default=None, ge=0)
    """Price of 1,000 input tokens; None if it is not stated."""
    price_output: float | None = Field(default=None, ge=0)

    @classmethod
    def of_recipe(cls, evaluation: EvaluationConfig, *, serving: ServingConfig) -> Self | None:
        """Return the terms of a recipe; None if it has no `evaluation.cost`."""
        if evaluation.cost is None:
            return None
        endpoint = evaluation.endpoint
        return cls(
            **evaluation.cost.model_dump(),
            min_replicas=serving.min_replicas,
            cpus_per_replica=serving.cpus_per_replica,
            gpus_per_replica=serving.gpus_per_replica,
            endpoint=endpoint_name(endpoint.model, url=endpoint.url) if endpoint else None,
            price_input=endpoint.price_input if endpoint else None,
            price_output=endpoint.price_output if endpoint else None,
        )

    @property
    def requests(self) -> float:
        """Number of requests over the horizon."""
        return self.requests_per_month * self.horizon_months

    def replica_hour(self, *, with_gpus: bool) -> float:
        """Return the price of one hour of a replica, with its CPU cores and GPUs; a missing price raises ValueError."""
        cores = self.cpus_per_replica * _known(self.price_per_cpu_hour, "evaluation.cost.price_per_cpu_hour")
        if not with_gpus:
            return cores
        return cores + self.gpus_per_replica * _known(self.price_per_gpu_hour, "evaluation.cost.price_per_gpu_hour")


@dataclass(frozen=True)
class ServingPrice:
    """The cost of serving one model over the horizon, in the recipe's currency; arrays [K] have a value per round."""

    replicas: NDArray[np.float64]  # [K] of the hours for which they are paid, busy or idle
    tokens: NDArray[np.float64]  # [K]

    @property
    def total(self) -> NDArray[np.float64]:
        """The cost of serving [K]."""
        return self.replicas + self.tokens


def missing_for_serving(usage: ServingUsage, *, terms: CostTerms) -> tuple[str, ...]:
    """Return what prevents a price for serving, one phrase each: a missing price, or a missing measurement."""
    tokens, stored = usage.tokens, usage.tokens and usage.tokens.prices
    on_gpu = terms.gpus_per_replica > 0 and not _without_gpus(usage)
    ours = tokens is not None and stored is None and tokens.endpoint == terms.endpoint
    other = tokens is not None and stored is None and tokens.endpoint != terms.endpoint
    missing = {
        "evaluation.cost.price_per_cpu_hour is not set": terms.price_per_cpu_hour is None,
        "evaluation.cost.price_per_gpu_hour is not set": on_gpu and terms.price_per_gpu_hour is None,
        "GPU-seconds were not measured": on_gpu and usage.gpu_s is None,
        "serving.gpus_per_replica was 0 when the run was registered": not on_gpu and usage.gpu_s is not None,
        f"{tokens.endpoint if tokens else ''} does not report its tokens": tokens is not None and not tokens.reported,
        f"evaluation.endpoint is not {tokens.endpoint if tokens else ''}": other,
        "evaluation.endpoint.price_input is not set": ours and terms.price_input is None,
        "evaluation.endpoint.price_output is not set": ours and terms.price_output is None,
    }
    return tuple(phrase for phrase, holds in missing.items() if holds)


def _without_gpus(usage: ServingUsage) -> bool:
    """Return True if all rows are answered by an external endpoint, whose replicas have no GPU."""
    return usage.tokens is not None and usage.gpu_s is None


def missing_for_training(training: TrainingUsage, *, terms: CostTerms) -> tuple[str, ...]:
    """Return the prices that are missing for a training, one phrase each."""
    missing = {
        "evaluation.cost.price_per_cpu_hour is not set": training.cpu_s and terms.price_per_cpu_hour is None,
        "evaluation.cost.price_per_gpu_hour is not set": training.gpu_s and terms.price_per_gpu_hour is None,
    }
    return tuple(phrase for phrase, holds in missing.items() if holds)


def price_serving(usage: ServingUsage, *, terms: CostTerms) -> ServingPrice:
    """Return the cost of serving one model at the recipe's volume.

    A replica is paid from its start to its stop, with all of its CPU cores and GPUs. The paid replica-hours of a month
    are the larger of two numbers: those of `min_replicas` that always run, and those in which the CPU cores or GPUs of
    one replica are busy with the month's requests. Busy time within the replicas that run anyway costs nothing more.
    The replicas of an external endpoint have no GPU.

    Raises ValueError if a price or a measurement is missing: see `missing_for_serving`.
    """
    if missing := missing_for_serving(usage, terms=terms):
        raise ValueError(f"the cost of serving is not assessable: {'; '.join(missing)}")
    thousands, months = terms.requests_per_month / 1000, terms.horizon_months
    busy = np.array(usage.cpu_s) / terms.cpus_per_replica
    if usage.gpu_s is not None:
        busy = np.maximum(busy, np.array(usage.gpu_s) / terms.gpus_per_replica)
    busy_hours = busy * thousands / SECONDS_PER_HOUR
    paid_hours = np.maximum(busy_hours, terms.min_replicas * HOURS_PER_MONTH)
    tokens = np.zeros(len(busy))
    if usage.tokens is not None:
        price_input, price_output = _token_prices(usage.tokens, terms=terms)
        tokens = np.array(usage.tokens.input) * price_input + np.array(usage.tokens.output) * price_output
    replica_hour = terms.replica_hour(with_gpus=usage.gpu_s is not None)
    return ServingPrice(
        replicas=paid_hours * months * replica_hour,
        tokens=tokens / 1000 * thousands * months,
    )


def _token_prices(tokens: Tokens, *, terms: CostTerms) -> tuple[float, float]:
    """Return the prices of 1,000 tokens: those of the recipe if it names the endpoint, else those of the version."""
    if tokens.endpoint == terms.endpoint and terms.price_input is not None and terms.price_output is not None:
        return terms.price_input, terms.price_output
    assert tokens.prices is not None, "`missing_for_serving` names a missing price"
    return tokens.prices


def price_training(training: TrainingUsage, *, terms: CostTerms) -> float:
    """Return the cost of a training; raise ValueError if a price is missing: see `missing_for_training`."""
    total = 0.0
    if training.cpu_s:
        total += training.cpu_s * _known(terms.price_per_cpu_hour, "evaluation.cost.price_per_cpu_hour")
    if training.gpu_s:
        total += training.gpu_s * _known(terms.price_per_gpu_hour, "evaluation.cost.price_per_gpu_hour")
    return total / SECONDS_PER_HOUR


def mean_interval(values: Sequence[float] | NDArray[np.float64], *, alpha: float) -> tuple[float, float]:
    """Return the mean over rounds and half the width of Student's t interval, two-sided at level 1 - alpha."""
    rounds = np.asarray(values, dtype=np.float64)
    half = t_ppf(1 - alpha / 2, len(rounds) - 1) * rounds.std(ddof=1) / np.sqrt(len(rounds))
    return float(rounds.mean()), float(half)


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
    if not (ours > 0).all() or not (theirs > 0).all():
        return None  # every price that applies is 0
    mean, half = mean_interval(np.log(ours) - np.log(theirs), alpha=alpha)
    estimate, low, high = np.exp([mean, mean - half, mean + half])
    return float(estimate), float(low), float(high)


def cost_unit(pair: CostPair, *, terms: CostTerms | None) -> CostUnit:
    """Return what `cost_ratio` compares."""
    return pair.candidate.unit if terms is None else "price"


def _known(price: float | None, name: str) -> float:
    """Return a price; raise ValueError if it is missing, because nothing that is used is free."""
    if price is None:
        raise ValueError(f"{name} is not set; set it")
    return price
