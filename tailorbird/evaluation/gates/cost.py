"""The resources that models use: measured for serving and training, without prices (see `gates.prices`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MIN_ROUNDS = 5
SECONDS_PER_HOUR = 3600
SecondsUnit = Literal["CPU-seconds", "GPU-seconds"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of an external endpoint for a thousand rows, one value per round (see `tokens_by_round`)."""

    endpoint: str  # name and URL of the model, see `endpoint_name`
    input: tuple[float, ...]  # empty if the endpoint does not report its tokens
    output: tuple[float, ...]  # the same
    prices: tuple[float, float] | None = None
    """Prices of 1,000 input and 1,000 output tokens that are stored with the version; None if it has none."""

    def __post_init__(self) -> None:
        for name in ("input", "output"):
            counts = getattr(self, name)
            if not (np.isfinite(counts) & (np.array(counts) >= 0)).all():
                raise ValueError(f"{name} tokens {sorted(counts)} must be finite and 0 or more")
        if self.prices is not None and not all(np.isfinite(price) and price >= 0 for price in self.prices):
            raise ValueError(f"prices of tokens {self.prices} must be finite and 0 or more")
        if len(self.input) != len(self.output):
            raise ValueError(
                f"{len(self.input)} rounds have input tokens and {len(self.output)} have output tokens; give both for "
                "the same rounds"
            )

    @property
    def reported(self) -> bool:
        """True if the endpoint reports its tokens."""
        return bool(self.input)


def endpoint_name(model: str, *, url: str) -> str:
    """Return the name of an endpoint's model, by which its prices are matched with its tokens."""
    return f"{model} at {url}"


@dataclass(frozen=True)
class RowTokens:
    """The tokens of an external endpoint for each row; None where the endpoint does not report them."""

    endpoint: str  # see `endpoint_name`
    input: tuple[int | None, ...]
    output: tuple[int | None, ...]
    prices: tuple[float, float] | None = None  # see `Tokens`


def tokens_by_round(
    rows: RowTokens, *, answered: NDArray[np.bool_] | None = None, num_rounds: int = MIN_ROUNDS
) -> Tokens:
    """Return the tokens for a thousand rows of `num_rounds` equal parts of the rows, in row order.

    With `answered` [N], the endpoint answers only these rows, and the other rows have no tokens. If the tokens of an
    answered row are not known, or if there are fewer rows than rounds, the result has no tokens. The number of tokens
    of a row does not vary by round, but the rows are a sample; the spread over the parts is that of the sample.
    """
    sent, received = (
        [count if answered is None or answered[row] else 0 for row, count in enumerate(counts)]
        for counts in (rows.input, rows.output)
    )
    if None in sent or None in received or len(sent) < num_rounds:
        return Tokens(rows.endpoint, (), (), rows.prices)
    parts = (np.array_split(np.array(counts, dtype=np.float64), num_rounds) for counts in (sent, received))
    inputs, outputs = (tuple(float(1000 * part.mean()) for part in of_all) for of_all in parts)
    return Tokens(rows.endpoint, inputs, outputs, rows.prices)


def shares_by_round(
    answered: NDArray[np.bool_], *, lengths: NDArray[np.float64] | None = None, num_rounds: int = MIN_ROUNDS
) -> tuple[float, ...]:
    """Return the share of the rows that a part of a hybrid answers, in `num_rounds` equal parts of the rows, in order.

    `lengths` [N] are proportional to the time that the part needs for a row; a row counts with its length relative to
    the mean. The spread over the parts is the sampling error of the share. If the part answers all rows, there is no
    such error and every share is 1. With fewer rows than rounds, every round has the share of all rows.
    """
    values = answered.astype(np.float64)
    if lengths is not None and lengths.mean() > 0 and not answered.all():
        values = values * lengths / lengths.mean()
    if len(values) < num_rounds:
        return (float(values.mean()),) * num_rounds
    return tuple(float(part.mean()) for part in np.array_split(values, num_rounds))


@dataclass(frozen=True)
class ServingUsage:
    """The resources with which one model answers a thousand rows, one value per alternating round."""

    cpu_s: tuple[float, ...]  # CPU-seconds; of an external endpoint, those of the replica that calls it
    gpu_s: tuple[float, ...] | None = None
    """GPU-seconds: the time in which a replica is busy, times its whole GPUs or 1. None if replicas have no GPU, as
    those of an external endpoint."""
    tokens: Tokens | None = None
    """The tokens of an external endpoint. None if no endpoint answers any row."""

    def __post_init__(self) -> None:
        given = {"CPU-seconds": self.cpu_s, "GPU-seconds": self.device_s}
        for unit, seconds in given.items():
            if not (np.isfinite(seconds) & (np.array(seconds) > 0)).all():
                raise ValueError(f"{unit} {sorted(seconds)} must be finite and above 0; measure on more rows")
        if len(self.cpu_s) != len(self.device_s):
            raise ValueError(f"{len(self.cpu_s)} rounds have CPU-seconds and {len(self.device_s)} have GPU-seconds")
        if self.tokens is not None and len(self.tokens.input) not in (0, len(self.cpu_s)):
            raise ValueError(
                f"{len(self.cpu_s)} rounds have CPU-seconds and {len(self.tokens.input)} have tokens; count the tokens "
                "in as many parts of the rows"
            )

    @property
    def unit(self) -> SecondsUnit:
        """Unit of `device_s`."""
        return "CPU-seconds" if self.gpu_s is None else "GPU-seconds"

    @property
    def device_s(self) -> tuple[float, ...]:
        """Seconds of the device that serves: GPU-seconds if replicas have GPUs, else CPU-seconds."""
        return self.cpu_s if self.gpu_s is None else self.gpu_s


def combined_usage(parts: Sequence[tuple[Sequence[float], ServingUsage]]) -> ServingUsage:
    """Return the resources of a model whose parts each answer some of the rows: pairs of shares and resources.

    The shares have a value per round and apply to the seconds; the tokens must be those of the answered rows. A
    part without GPU-seconds or tokens has none of them to add to the others'. The tokens of several
    endpoints are added, so that no endpoint's price applies to them.
    """
    rounds = range(len(parts[0][1].cpu_s))
    cpu_s = tuple(sum(shares[index] * usage.cpu_s[index] for shares, usage in parts) for index in rounds)
    on_gpu = [(shares, usage.gpu_s) for shares, usage in parts if usage.gpu_s is not None]
    gpu_s = tuple(sum(shares[index] * seconds[index] for shares, seconds in on_gpu) for index in rounds)
    counted = [usage.tokens for _, usage in parts if usage.tokens is not None]
    return ServingUsage(cpu_s, gpu_s if on_gpu else None, _added(counted) if counted else None)


def scaled_tokens(tokens: Tokens, *, shares: Sequence[float]) -> Tokens:
    """Return the tokens of an endpoint that answers a share of the rows, which has a value per round."""
    if not tokens.reported:
        return tokens
    sent, received = (
        tuple(share * count for share, count in zip(shares, of_all, strict=True))
        for of_all in (tokens.input, tokens.output)
    )
    return replace(tokens, input=sent, output=received)


def _added(tokens: Sequence[Tokens]) -> Tokens:
    name = " and ".join(dict.fromkeys(each.endpoint for each in tokens))
    prices = tokens[0].prices if len({(each.endpoint, each.prices) for each in tokens}) == 1 else None
    if not all(each.reported for each in tokens):
        return Tokens(name, (), (), prices)
    sums = [np.sum([getattr(each, kind) for each in tokens], axis=0).tolist() for kind in ("input", "output")]
    return Tokens(name, tuple(sums[0]), tuple(sums[1]), prices)


ServingCosts = Mapping[str, ServingUsage]
"""Resources for a thousand rows, by the role of the model."""


@dataclass(frozen=True)
class ServingDevice:
    """The device on which the cost of serving was measured."""

    name: str  # for example `CPU` or `NVIDIA H100 80GB HBM3`
    emulated: tuple[str, ...] = ()  # roles of models whose dtype the device emulates, so that they are slow
    engine: str = "transformers"  # engine of the language models, also if the service uses another


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
        cpu = _hours(self.cpu_s, "CPU")
        return f"{_hours(self.gpu_s, 'GPU')} and {cpu}" if self.gpu_s else cpu


def _hours(seconds: float, device: str) -> str:
    number = f"{seconds / SECONDS_PER_HOUR:,.4g}"
    return f"{number} {device}-hour{'' if number == '1' else 's'}"


@dataclass(frozen=True)
class CostPair:
    """The resources of two models, measured in the same alternating rounds on the same machine."""

    incumbent: ServingUsage
    candidate: ServingUsage

    def __post_init__(self) -> None:
        rounds = [len(usage.cpu_s) for usage in (self.incumbent, self.candidate)]
        if rounds[0] != rounds[1] or rounds[0] < MIN_ROUNDS:
            raise ValueError(
                f"{rounds[0]} rounds of the incumbent and {rounds[1]} of the candidate; measure both in the same "
                f"{MIN_ROUNDS} or more rounds"
            )


def cost_pair(costs: ServingCosts, *, candidate: str = "candidate", incumbent: str = "incumbent") -> CostPair:
    """Return the measured resources of the models in two roles as a pair."""
    return CostPair(incumbent=costs[incumbent], candidate=costs[candidate])
