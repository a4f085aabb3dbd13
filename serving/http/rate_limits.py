"""Limits of API keys in requests, texts and tokens per minute."""

import time
from collections.abc import Callable
from typing import Literal

from serving.http.api_keys import ApiKey
from serving.http.schemas import RequestError

Quantity = Literal["requests", "texts", "tokens"]
QUANTITIES: tuple[Quantity, ...] = ("requests", "texts", "tokens")


class RateLimiter:
    """Token buckets of one replica, one per key and limit. A bucket holds the limit of one minute, and refills evenly.

    A request is accepted while nothing that its key limits is used up. Texts and tokens are charged when they are
    known, so a request may use more than what is left. The key then waits until the rest is refilled.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[tuple[str, Quantity], tuple[float, float]] = {}

    def accept(self, key: ApiKey) -> None:
        """Charge a request; raise RequestError 429 if a limit of the key is used up."""
        for quantity in QUANTITIES:
            limit: int | None = getattr(key.options, quantity)
            if limit is None or (missing := 1 - self._level(key, quantity, limit)) <= 0:
                continue
            wait_s = max(1, round(missing * 60 / limit + 0.5))
            message = f"the key {key.name} is limited to {limit} {quantity} a minute; retry in {wait_s} s"
            headers = {"retry-after": str(wait_s)}
            raise RequestError(429, "rate_limited", message, code="rate_limit_exceeded", headers=headers)
        self.charge(key, requests=1)

    def charge(self, key: ApiKey, **amounts: int) -> None:
        """Charge requests, texts or tokens."""
        for quantity in QUANTITIES:
            limit: int | None = getattr(key.options, quantity)
            if limit is not None and (amount := amounts.get(quantity, 0)):
                self._buckets[key.sha256, quantity] = self._level(key, quantity, limit) - amount, self._now()

    def _level(self, key: ApiKey, quantity: Quantity, limit: int) -> float:
        now = self._now()
        level, updated_at = self._buckets.get((key.sha256, quantity), (float(limit), now))
        return min(float(limit), level + (now - updated_at) * limit / 60)
