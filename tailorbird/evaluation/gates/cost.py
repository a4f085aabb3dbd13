"""The resources that models use: measured for serving and training, without prices (see
`gates.prices`)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

MIN_ROUNDS = 5
SECONDS_PER_HOUR = 3600
SecondsUnit = Literal["CPU-seconds", "GPU-seconds"]


@dataclass(frozen=True)
class Tokens:
    """The tokens of an external endpoint for a thousand rows, one value per round (see
    `tokens_by_round`)."""

    endpoint: str  # name and URL of the model, see `endpoint_name`
    input: tuple[float, ...]  # empty if the endpoint does not report its tokens
    output: tuple[float, ...]  # the same
    prices: tuple[float, float] | None = None
    """Prices of 1,000 input and 1,000 output tokens that are stored with the version; None if it
    has none."""

    def __post_init__(self) -> None:
        _require_amounts("input tokens", self.input)
        _require_amounts("output tokens", self.output)
        _require_amounts("prices of tokens", self.prices or ())

    @property
    def reported(self) -> bool:
        """True if the endpoint reports its tokens."""
        return bool(self.input)


def _require_amounts(what: str, amounts: Sequence[float], *, is_positive: bool = False) -> None:
    """Raise ValueError if an amount is not finite, or is below 0, or is 0 and must be positive."""
    values = np.array(amounts)
    if not (np.isfinite(values) & (values >= 0)).all() or (is_positive and 0 in amounts):
        if is_positive:
            least = "above 0; measure on more rows"
        else:
            least = "0 or more"
        raise ValueError(f"{what} {sorted(amounts)} must be finite and {least}")


def endpoint_name(model: str, *, url: str) -> str:
    """Return the name of an endpoint's model, by which its prices are matched with its tokens."""
    return f"{model} at {url}"


@dataclass(frozen=True)
class RowTokens:
    """The tokens of an external endpoint for each row; None where the endpoint does not report
    them."""

    endpoint: str  # see `endpoint_name`
    input: tuple[int | None, ...]
    output: tuple[int | None, ...]
    prices: tuple[float, float] | None = None  # see `Tokens`


def tokens_by_round(
    rows: RowTokens, *, answered: NDArray[np.bool_] | None = None, num_rounds: int = MIN_ROUNDS
) -> Tokens:
    """Return the tokens for a thousand rows of each round (`_by_round`).

    With `answered` [N], the endpoint answers only these rows, and the other rows have no tokens. If
    the tokens of an answered row are not known, the result has no tokens.
    """
    counts = np.array((rows.input, rows.output), dtype=np.float64)
    if answered is not None:
        counts = np.where(answered, counts, 0.0)
    if np.isnan(counts).any():
        return Tokens(rows.endpoint, input=(), output=(), prices=rows.prices)
    by_round = [_by_round(1000 * count, num_rounds) for count in counts]
    return Tokens(rows.endpoint, input=by_round[0], output=by_round[1], prices=rows.prices)


def shares_by_round(
    answered: NDArray[np.bool_], *, lengths: NDArray[np.float64], num_rounds: int = MIN_ROUNDS
) -> tuple[float, ...]:
    """Return the share of the rows of each round (`_by_round`) that a part of a hybrid answers.

    `lengths` [N] are proportional to the time that the part needs for a row; a row counts with its
    length relative to the mean. If the part answers all rows, there is no sampling error and every
    share is 1.
    """
    values = answered.astype(np.float64)
    if lengths.any() and not answered.all():
        values = values * lengths / lengths.mean()
    return _by_round(values, num_rounds)


def _by_round(values: NDArray[np.float64], num_rounds: int) -> tuple[float, ...]:
    """Return the mean of each of `num_rounds` equal parts of per-row values [N], in row order.

    What a model uses for a row does not vary by round, but the rows are a sample; the spread over
    the parts is that of the sample. With fewer rows than rounds, every round has the mean of all
    rows.
    """
    if len(values) < num_rounds:
        return (float(values.mean()),) * num_rounds
    return tuple(float(part.mean()) for part in np.array_split(values, num_rounds))


@dataclass(frozen=True)
class ServingUsage:
    """The resources with which one model answers a thousand rows, one value per alternating
    round."""

    cpu_s: tuple[
        float, ...
    ]  # CPU-seconds; of an external endpoint, those of the replica that calls it
    gpu_s: tuple[float, ...] | None = None
    """GPU-seconds: the time in which a replica is busy, times its whole GPUs or 1. None if replicas
    have no GPU, as those of an external endpoint."""
    tokens: Tokens | None = None
    """The tokens of an external endpoint. None if no endpoint answers any row."""

    def __post_init__(self) -> None:
        _require_amounts("CPU-seconds", self.cpu_s, is_positive=True)
        _require_amounts("GPU-seconds", self.device_s, is_positive=True)
        columns = [self.cpu_s, self.device_s]
        if self.tokens is not None and self.tokens.reported:
            columns += [self.tokens.input, self.tokens.output]
        rounds = [len(amounts) for amounts in columns]
        if len(set(rounds)) > 1 or rounds[0] < MIN_ROUNDS:
            raise ValueError(
                f"seconds and tokens have {rounds} rounds; measure all of them in the same "
                f"{MIN_ROUNDS} or more rounds"
            )

    @property
    def unit(self) -> SecondsUnit:
        """Unit of `device_s`."""
        if self.gpu_s is None:
            return "CPU-seconds"
        return "GPU-seconds"

    @property
    def device_s(self) -> tuple[float, ...]:
        """Seconds of the device that serves: GPU-seconds if replicas have GPUs, else
        CPU-seconds."""
        if self.gpu_s is None:
            return self.cpu_s
        return self.gpu_s


ServingCosts = Mapping[str, ServingUsage]
"""Resources for a thousand rows, by the role of the model."""


@dataclass(frozen=True)
class ServingDevice:
    """The device on which the cost of serving was measured."""

    name: str  # for example `CPU` or `NVIDIA H100 80GB HBM3`
    emulated: tuple[
        str, ...
    ] = ()  # roles of models whose dtype the device emulates, so that they are slow
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
        _require_amounts("seconds of training", (self.cpu_s, self.gpu_s))

    def __str__(self) -> str:
        """Return the resources in hours: `3.2 GPU-hours and 25.6 CPU-hours`."""
        cpu = _hours(self.cpu_s, "CPU")
        if self.gpu_s:
            return f"{_hours(self.gpu_s, 'GPU')} and {cpu}"
        return cpu


def _hours(seconds: float, device: str) -> str:
    number = f"{seconds / SECONDS_PER_HOUR:,.4g}"
    return f"{number} {device}-hour{'' if number == '1' else 's'}"


NO_TRAINING = TrainingUsage()
"""The training of a model that this run did not train."""
