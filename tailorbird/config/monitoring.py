"""Section `monitoring` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tailorbird.config.base import ConfigSection


class MonitoringConfig(ConfigSection):
    window_days: int = Field(default=7, ge=1)
    """Days of the request log in one window, the latest complete ones."""
    label_days: int = Field(default=30, ge=0)
    """Days after an answer in which feedback on it counts."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of windows without drift from the validation rows on which drift is reported."""
    min_labels: int = Field(default=300, ge=50)
    """Newly labelled rows that are enough for a new verdict."""
    rollback: Literal["propose", "automatic"] = "propose"
    """If the champion loses a new verdict: propose a rollback to the version before, or do it."""
    keep_days: int | None = Field(default=None, ge=1)
    """Days after which `tailorbird watch` deletes rows and feedback of the request log; by default never."""

    @model_validator(mode="after")
    def _kept_long_enough(self) -> Self:
        needed = self.window_days + self.label_days
        if self.keep_days is not None and self.keep_days < needed:
            raise ValueError(f"keep_days {self.keep_days} is under window_days and label_days together, {needed}")
        return self
