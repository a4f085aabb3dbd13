"""Section `tuning` of a recipe."""

from math import inf
from typing import Any, Self

from pydantic import Field, field_validator, model_validator

from tailorbird.config.base import ConfigSection

TUNABLE = (
    "batch_size",
    "class_weights",
    "epochs",
    "label_smoothing",
    "learning_rate",
    "lora_dropout",
    "lora_r",
    "method",
    "pooling",
)
"""Fields of the section `training` that affect the score, and can differ between trials."""


class Distribution(ConfigSection):
    """Distribution from which a trial's value is sampled. Exactly one of the fields is set."""

    choice: tuple[Any, ...] | None = None
    """List of values to choose from."""
    log_uniform: tuple[float, float] | None = None
    """Range `[low, high]` of positive numbers, sampled on a logarithmic scale, for example for
    learning rates."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.choice is None) == (self.log_uniform is None):
            raise ValueError("set exactly one of choice and log_uniform")
        if self.choice == ():
            raise ValueError("choice is empty; give at least one value")
        if self.log_uniform is not None:
            low, high = self.log_uniform
            if not 0 < low < high < inf:
                raise ValueError(
                    "log_uniform requires finite numbers [low, high] with 0 < low < high"
                )
        return self


class TuningConfig(ConfigSection):
    num_trials: int = Field(default=8, ge=1)
    """Number of trials, each with one configuration. With an empty `space`, 1 is enough."""
    max_concurrent_trials: int | None = Field(default=None, ge=1)
    """Maximum number of trials that run at the same time. By default, as many as the cluster has
    room for at the start. Set it for an autoscaler."""
    space: dict[str, Distribution] = Field(default_factory=dict)
    """Search space: fields of the section `training` with their distributions. If it is empty,
    every trial uses the section's values."""
    grace_epochs: int = Field(default=1, ge=1)
    """Number of epochs that every trial runs before ASHA can stop it. Raise it if an epoch has
    fewer than about 12 steps."""

    def trials_at_once(self, *, room: int) -> int:
        """Return the number of trials that run at the same time if the cluster has room for `room`
        trials."""
        return min(self.num_trials, self.max_concurrent_trials or room)

    @field_validator("space")
    @classmethod
    def _known_fields(cls, space: dict[str, Distribution]) -> dict[str, Distribution]:
        for name in space:
            if name not in TUNABLE:
                raise ValueError(f"{name!r} cannot be tuned; allowed: {', '.join(TUNABLE)}")
        return space
