"""The recommendation of the last `watch` of a task, stored for readers that compute no
statistics."""

from typing import Literal

from tailorbird.registry.versions import Frozen
from tailorbird.storage.stored_model import StoredModel


class ChallengerPoint(Frozen):
    """The comparison of the challenger with the champion after a day."""

    day: str
    requests: int
    gain: float  # mean difference of the shares of right answers
    interval: tuple[float, float]
    """Confidence sequence of the gain, valid at all days at once."""


class ChallengerRecord(Frozen):
    """The decision on the challenger, with its course over the days."""

    version: str
    digest: str
    decision: Literal["promote", "continue", "stop"]
    reason: str
    alpha: float
    days: tuple[ChallengerPoint, ...]


class WatchRecord(StoredModel):
    """The recommendation of one watch, written to `watch.json` in place of the previous one."""

    at: str
    """ISO 8601."""
    version: str
    """Name of the champion."""
    digest: str
    """Digest of the champion."""
    reevaluate: bool
    reasons: tuple[str, ...]
    expires_at: str | None
    """Expiry of the champion's verdict, also if a re-evaluation has renewed it; None without a
    run."""
    challenger: ChallengerRecord | None
