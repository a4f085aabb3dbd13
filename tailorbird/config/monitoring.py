"""Section `monitoring` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tailorbird.config.base import ConfigSection


class MonitoringConfig(ConfigSection):
    window_days: int = Field(default=7, ge=1)
    """Number of days of the request log in a monitoring window. The latest complete days are
    used."""
    label_days: int = Field(default=30, ge=0)
    """Number of days after a monitoring window for which feedback on its answers counts; the daily
    report is then final."""
    min_labels: int = Field(default=300, ge=50)
    """Minimum number of newly labelled rows for a re-evaluation of the champion."""
    rollback: Literal["propose", "automatic"] = "propose"
    """Action if a re-evaluation does not confirm the champion: `propose` recommends a rollback to
    the previous champion, `automatic` performs it."""
    keep_days: int | None = Field(default=None, ge=1)
    """Number of days after which `tailorbird watch` deletes answers and feedback from the request
    log. At least `window_days` plus `label_days`. By default, nothing is deleted."""

    @model_validator(mode="after")
    def _retained_long_enough(self) -> Self:
        needed = self.window_days + self.label_days
        if self.keep_days is not None and self.keep_days < needed:
            raise ValueError(
                f"keep_days {self.keep_days} must be at least window_days + label_days, {needed}"
            )
        return self
