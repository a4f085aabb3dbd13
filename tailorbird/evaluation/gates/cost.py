"""The cost gate: compare the value of the gain with the cost of training and serving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.stats import t

from tailorbird.config.evaluation import CostConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.statistics.paired import Comparison

MIN_ROUNDS = 5
SECONDS_PER_HOUR = 3600
MAX_SHRINK = 1000.0
"""Largest factor by which an interval may have to shrink; a larger factor needs over a million times the rows."""
CostUnit = Literal["CPU-seconds", "GPU-seconds"]


@dataclass(frozen=True)
class ServingUsage:
    """The resources with which one model answers a thousand rows, one value per alternating round."""

    cpu_s: tuple[float, ...]  # CPU-seconds
    gpu_s: tuple[float, ...] | None = None
    """GPU-seconds: the time in which a replica with one GPU is busy. None if replicas have no GPU."""

    def __post_init__(self) -> None:
        given = {"CPU-seconds": self.cpu_s, "GPU-seconds": self.device_s}
        for unit, seconds in given.items():
            if not (np.isfinite(seconds) & (np.array(seconds) > 0)).all():
                raise ValueError(f"{unit} {sorted(seconds)} must be finite and above 0; measure on more rows")
        if len(self.cpu_s) != len(self.device_s):
            raise ValueError(f"{len(self.cpu_s)} rounds have CPU-seconds and {len(self.device_s)} have GPU-seconds")

    @property
    def unit(self) -> CostUnit:
        """Unit of `device_s`."""
        return "CPU-seconds" if self.gpu_s is None else "GPU-seconds"

    @property
    def device_s(self) -> tuple[float, ...]:
        """Seconds of the device that serves: GPU-seconds if replicas have GPUs, else CPU-seconds."""
        return self.cpu_s if self.gpu_s is None else self.gpu_s


ServingCosts = Mapping[str, ServingUsage]
"""Resources for a thousand rows, by the role of the model."""


@dataclass(frozen=True)
class ServingDevice:
    """The device on which the cost of serving was measured."""

    name: str  # for example `CPU` or `NVIDIA H100 80GB HBM3`
    emulated: tuple[str, ...] = ()  # roles of models whose dtype the device emulates, so that they are slow


@dataclass(frozen=True)
class MeasuredCosts:
    """The measured resources for serving each model."""

    device: ServingDevice
    serving: ServingCosts


@dataclass(frozen=True)
class TrainingUsage:
    """The resources of the training steps of all trials and seeds."""

    cpu_s: float = 0.0  # CPU-seconds
    gpu_s: float = 0.0  # GPU-seconds

    def __post_init__(self) -> None:
        for name in ("cpu_s", "gpu_s"):
            seconds = getattr(self, name)
            if not (np.isfinite(seconds) and seconds >= 0):
                raise ValueError(f"training {name} is {seconds}; give a finite time of 0 or more")

    def __str__(self) -> str:
        """Return the resources in hours: `3.2 GPU-hours and 25.6 CPU-hours`."""
        cpu = f"{self.cpu_s / SECONDS_PER_HOUR:,.4g} CPU-hours"
        return f"{self.gpu_s / SECONDS_PER_HOUR:,.4g} GPU-hours and {cpu}" if self.gpu_s else cpu


@dataclass(frozen=True)
class CostRounds:
    """The resources of both models, measured in the same alternating rounds on the same device."""

    incumbent: ServingUsage
    candidate: ServingUsage

    def __post_init__(self) -> None:
        rounds = [len(usage.cpu_s) for usage in (self.incumbent, self.candidate)]
        if rounds[0] != rounds[1] or rounds[0] < MIN_ROUNDS:
            raise ValueError(
                f"{rounds[0]} rounds of the incumbent and {rounds[1]} of the candidate; measure both in the same "
                f"{MIN_ROUNDS} or more rounds"
            )
        if self.incumbent.unit != self.candidate.unit:
            raise ValueError(
                f"the incumbent has {self.incumbent.unit} and the candidate {self.candidate.unit}; measure both on the "
                "same device"
            )


def cost_rounds(costs: ServingCosts, *, candidate: str = "candidate", incumbent: str = "incumbent") -> CostRounds:
    """Return the measured resources of the models in two roles as a pair."""
    return CostRounds(incumbent=costs[incumbent], candidate=costs[candidate])


def cost_ratio(rounds: CostRounds, *, alpha: float = 0.05) -> tuple[float, tuple[float, float]]:
    """Return the candidate's seconds on the serving device divided by the incumbent's, with a 1 - alpha interval.

    The estimate is the geometric mean over the rounds. The interval is Student's t on the logarithms of the ratios per
    round, because the load of the machine in a round affects both models.
    """
    logs = np.log(rounds.candidate.device_s) - np.log(rounds.incumbent.device_s)
    num_rounds = len(logs)
    half = t.ppf(1 - alpha / 2, num_rounds - 1) * logs.std(ddof=1) / np.sqrt(num_rounds)
    low, estimate, high = np.exp([logs.mean() - half, logs.mean(), logs.mean() + half])
    return float(estimate), (float(low), float(high))


def price_of(usage: ServingUsage, *, terms: CostConfig) -> float:
    """Return the mean price of a thousand rows, in the recipe's currency."""
    cpu_s, gpu_s = np.mean(usage.cpu_s), np.mean(usage.gpu_s or 0.0)
    return float(cpu_s * terms.price_per_cpu_hour + gpu_s * _gpu_price(terms, gpu_s=float(gpu_s))) / SECONDS_PER_HOUR


def _gpu_price(terms: CostConfig, *, gpu_s: float) -> float:
    """Return the price of a GPU-hour; raise ValueError if it is missing, because GPUs are never free."""
    if terms.price_per_gpu_hour is None and gpu_s:
        raise ValueError("GPU-seconds have no price; set evaluation.cost.price_per_gpu_hour")
    return terms.price_per_gpu_hour or 0.0


@dataclass(frozen=True)
class NetBenefit:
    """The parts of the net benefit over the horizon, in the recipe's currency."""

    value_of_one: float  # value of a gain of 1 (100 points)
    training: float
    saving: float  # in serving, by the candidate
    half_saving: float  # half the width of the saving's interval
    trained: TrainingUsage  # the resources that `training` prices

    def at(self, gain: float) -> float:
        """Return the net benefit at a gain: its value - cost of training + saving in serving."""
        return self.value_of_one * gain - self.training + self.saving

    def interval(self, gain: float, *, of_gain: tuple[float, float]) -> tuple[float, float]:
        """Return the interval from those of the gain and of the saving, by square-and-add (they are independent)."""
        low, high = (np.hypot(self.value_of_one * (end - gain), self.half_saving) for end in of_gain)
        return self.at(gain) - float(low), self.at(gain) + float(high)


def net_benefit(terms: CostConfig, *, rounds: CostRounds, training: TrainingUsage, alpha: float) -> NetBenefit:
    """Return the net benefit with Student's t interval of the saving over the rounds, two-sided at level 1 - alpha.

    CPU-seconds and GPU-seconds are both priced. Raises ValueError if GPUs are used and have no price.
    """
    requests = terms.requests_per_month * terms.horizon_months
    price_per_cpu_s = terms.price_per_cpu_hour / SECONDS_PER_HOUR
    trained = training.cpu_s * price_per_cpu_s
    saved = (np.array(rounds.incumbent.cpu_s) - np.array(rounds.candidate.cpu_s)) / 1000 * requests * price_per_cpu_s
    if training.gpu_s:
        trained += training.gpu_s * _gpu_price(terms, gpu_s=training.gpu_s) / SECONDS_PER_HOUR
    if rounds.incumbent.gpu_s is not None and rounds.candidate.gpu_s is not None:
        gpu_s = np.array(rounds.incumbent.gpu_s) - np.array(rounds.candidate.gpu_s)
        saved += gpu_s / 1000 * requests * _gpu_price(terms, gpu_s=1.0) / SECONDS_PER_HOUR
    half = t.ppf(1 - alpha / 2, len(saved) - 1) * saved.std(ddof=1) / np.sqrt(len(saved))
    return NetBenefit(terms.value_of_correct * requests, trained, float(saved.mean()), float(half), training)


def cost_gate(main: Comparison, *, benefit: NetBenefit, horizon_months: float) -> Gate:
    """Return the cost gate: it passes if the interval of the net benefit is above 0, and fails if it is not above 0.

    The gain is a share of correct answers, because the recipe states the value of a correct answer. `main` is therefore
    the comparison in accuracy, also if the recipe's metric is macro-F1. For chat tasks, it is the comparison in the
    recipe's metric, and a point of the metric has the price of a point of accuracy.
    """
    estimate, (low, high) = benefit.at(main.gain), benefit.interval(main.gain, of_gain=main.interval)
    state = State.PASSES if low > 0 else State.FAILS if high <= 0 else State.NOT_ASSESSABLE
    n = main.counts.n
    needed = _rows_needed(main, benefit=benefit, n=n) if state is State.NOT_ASSESSABLE else None
    bound = Bound("net benefit over the horizon", estimate, (low, high), 0.0, n, state, needed)
    saving = f"serving {benefit.saving:+,.2f} (+- {benefit.half_saving:,.2f})"
    training = f"training {-benefit.training:+,.2f} for {benefit.trained}"
    parts = f"gain {benefit.value_of_one * main.gain:+,.2f}, {training}, {saving}"
    note = f"over {horizon_months:g} months, in the recipe's currency: {parts}"
    if main.gain != main.counts.gain:
        note += "; the gain is not measured in accuracy, so each point is priced like a point of accuracy"
    return gate("cost", (bound,), note=note)


def _rows_needed(main: Comparison, *, benefit: NetBenefit, n: int) -> int | None:
    """Return the rows that decide the gate at the same estimates; None if the saving's interval alone contains 0.

    The width of the gain's interval decreases with the square root of the rows, that of the saving does not.
    """
    half, net = benefit.value_of_one * (main.interval[1] - main.interval[0]) / 2, abs(benefit.at(main.gain))
    if net <= benefit.half_saving:
        return None
    shrink = half / net / np.sqrt(1 - (benefit.half_saving / net) ** 2)
    return max(n + 1, round(n * shrink**2)) if shrink < MAX_SHRINK else None
