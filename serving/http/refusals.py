"""Refused requests, which a replica logs as JSON. They are counted by reason and client, in bounded
memory."""

import asyncio
from collections import Counter
from typing import NamedTuple

from serving.security_log import log_event

STATUSES = (401, 403, 429)
LOG_S = 60.0
MAX_CLIENTS = 8
"""Maximum number of clients with counts of their own per reason, between two entries in the log."""
OTHER_CLIENTS = "other clients"


class Refusal(NamedTuple):
    """The reason of a refusal, which is the `type` of the error, and the client."""

    status: int
    type: str
    client: str
    """`key NAME`, or `address ADDRESS` if the request has no valid key."""


class Refusals:
    """Refusals since the last `take`. Reasons are few; beyond `MAX_CLIENTS` clients, a reason is
    counted for others."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._counts = Counter[Refusal]()

    def add(self, refusal: Refusal) -> None:
        """Count a refusal."""
        reason = (refusal.status, refusal.type)
        if refusal not in self._counts:
            num_clients = sum((other.status, other.type) == reason for other in self._counts)
            if num_clients >= MAX_CLIENTS:
                refusal = refusal._replace(client=OTHER_CLIENTS)
        self._counts[refusal] += 1

    def take(self) -> dict[Refusal, int]:
        """Return the counts, and start again from 0."""
        counts = dict(self._counts)
        self._counts.clear()
        return counts

    def log(self) -> None:
        """Log the counts, one JSON object for each reason and client, and start again from 0."""
        for refusal, count in self.take().items():
            log_event("refusal", task=self._task, **refusal._asdict(), count=count)

    async def keep_logging(self) -> None:
        """Log the counts every minute until cancelled."""
        while True:
            await asyncio.sleep(LOG_S)
            self.log()
