"""Section `tuning` of a recipe."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tailorbird.config.base import ConfigSection
from tailorbird.config.training import TrainingConfig


class Distribution(ConfigSection):
    """Distribution of a trial's value: exactly one of the fields."""

    choice: tuple[Any, ...] | None = None
    """One of these values."""
    uniform: tuple[float, float] | None = None
    """Between low and high."""
    log_uniform: tuple[float, float] | None = None
    """Between low and high, uniform in the logarithm."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        fields = [name for name in ("choice", "uniform", "log_uniform") if getattr(self, name) is not None]
        if len(fields) != 1:
            raise ValueError("give exactly one of choice, uniform, log_uniform")
        for name in ("uniform", "log_uniform"):
            bounds = getattr(self, name)
            if bounds and not (bounds[0] < bounds[1] and (name == "uniform" or bounds[0] > 0)):
                positive = " and low > 0" if name != "uniform" else ""
                raise ValueError(f"{name} takes [low, high] with low < high{positive}")
        return self


class TuningConfig(ConfigSection):
    num_trials: int = Field(default=8, ge=1)
    """Number of configurations to try."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at the same time; by default as many as fit when the sweep begins. Set it if an autoscaler adds nodes for
    them; each waits up to half an hour."""
    search: Literal["optuna", "random"] = "optuna"
    """How configurations are chosen."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """Fields of the training section to vary; if empty, the section is tried as it is."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs of every trial before ASHA may stop it; set more than one if an epoch has only a few steps (with 8 steps,
    the best of eight trials was stopped after one epoch, with 12 it was not)."""
    reduction_factor: int = Field(default=2, ge=2)
    """ASHA keeps one in this many at each rung."""
    trackers: tuple[Literal["mlflow", "tensorboard"], ...] = ()
    """Also log trials to `mlflow` at MLFLOW_TRACKING_URI, or `tensorboard` as event files under the sweep's `tune/` on
    S3. Install them by `pip install --editable '.[mlflow,tensorboard]'`."""
    learning_curve: bool = False
    """Also train the selected configuration on parts of the data, to estimate what more data would give."""

    def trials_at_once(self, *, room: int) -> int:
        """Return how many trials run at the same time, if the cluster has room for `room` of them."""
        return min(self.num_trials, self.max_concurrent_trials or room)

    @field_validator("space")
    @classmethod
    def _known_fields(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        fixed = {"num_workers", "cpus_per_worker", "gpus_per_worker", "zero_stage", "num_seeds", "seed", "max_failures"}
        fixed |= {"average_seeds", "attention_dropout", "offload", "deepspeed", "checkpoint_interval_s"}
        allowed = sorted(set(TrainingConfig.model_fields) - fixed)
        for name in space:
            if name not in allowed:
                raise ValueError(f"{name!r} cannot be tuned; allowed: {', '.join(allowed)}")
        return space
