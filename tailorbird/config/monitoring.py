"""Section `monitoring` of a recipe."""

from typing import Literal

from pydantic import Field

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
