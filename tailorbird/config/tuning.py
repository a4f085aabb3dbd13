"""Section `tuning` of a recipe."""

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from tailorbird.config.base import ConfigSection
from tailorbird.config.training import TrainingConfig


class Distribution(ConfigSection):
    """Where a trial's value comes from: exactly one of the fields."""

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
    """Configurations tried."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Trials at a time; left out, as many as there is room for when the sweep begins. Give it where an autoscaler is to
    bring nodes for them: half an hour is waited for each."""
    search: Literal["optuna", "random"] = "optuna"
    """How the next configuration is chosen."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """Fields of the training section to vary; empty tries the section as it is."""
    grace_epochs: int = Field(default=1, ge=1)
    """Epochs every trial gets before ASHA may stop it; give more than one where an epoch is only a few steps, and says
    little (of eight trials with 8 steps an epoch the best was stopped after one, with 12 it was not)."""
    reduction_factor: int = Field(default=2, ge=2)
    """ASHA keeps one in this many at each rung."""
    trackers: tuple[Literal["mlflow", "tensorboard"], ...] = ()
    """Where else the trials are written down: `mlflow` at MLFLOW_TRACKING_URI, `tensorboard` as event files under the
    sweep's `tune/` on S3. Each takes its package: `pip install --editable '.[mlflow,tensorboard]'`."""
    learning_curve: bool = False
    """Whether the chosen configuration is also trained on parts of the data, to tell what more data would give."""

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
