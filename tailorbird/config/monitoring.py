"""Section `monitoring` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tailorbird.config.base import ConfigSection


class MonitoringConfig(ConfigSection):
    window_days: int = Field(default=7, ge=1)
    """Days of the request log that are looked at together, the last ones that are over."""
    label_days: int = Field(default=30, ge=0)
    """Days after an answer in which feedback on it is looked for."""
    false_alarm_rate: float = Field(default=0.01, gt=0, lt=0.5)
    """Share of clean windows, from the same kind of requests as the validation rows, on which drift is alarmed."""
    min_labels: int = Field(default=300, ge=50)
    """Newly labelled rows from which the verdict is made again."""
    rollback: Literal["propose", "automatic"] = "propose"
    """What a new verdict that the champion no longer wins does: it is told, or the version before serves again."""
    keep_days: int | None = Field(default=None, ge=1)
    """Days that the request log is kept, rows and feedback; `tailorbird watch` deletes older ones. None keeps all."""

    @model_validator(mode="after")
    def _kept_long_enough(self) -> Self:
        needed = self.window_days + self.label_days
        if self.keep_days is not None and self.keep_days < needed:
            raise ValueError(f"keep_days {self.keep_days} is under window_days and label_days together, {needed}")
        return self
