"""Section `monitoring` of a recipe."""

from typing import Literal, Self

from pydantic import Field, model_validator

from tailorbird.config.base import ConfigSection

WINDOW_DAYS = 7
"""Number of days of the request log in a monitoring window."""


class MonitoringConfig(ConfigSection):
    label_days: int = Field(default=30, ge=0)
    """Number of days after a monitoring window for which feedback on its answers counts; the daily
    report is then final."""
    rollback: Literal["propose", "automatic"] = "propose"
    """Action if a re-evaluation does not confirm the champion: `propose` recommends a rollback to
    the previous champion, `automatic` performs it."""
    keep_days: int | None = Field(default=None, ge=1)
    """Number of days after which `tailorbird watch` deletes answers and feedback from the request
    log. At least `label_days` plus 7. By default, nothing is deleted."""

    @model_validator(mode="after")
    def _retained_long_enough(self) -> Self:
        if self.keep_days is not None and self.keep_days < self.label_days + WINDOW_DAYS:
            raise ValueError(
                f"keep_days {self.keep_days} must be at least label_days + {WINDOW_DAYS}"
            )
        return self
