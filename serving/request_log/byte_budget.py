"""A bound on the bytes of buffered rows or requests, in all and for each API key."""

from collections import Counter
from collections.abc import Mapping

Caller = str | None  # name of an API key; None for all requests of a service without keys


class ByteBudget:
    """The bytes of what is buffered by caller, of which a caller holds at most as many as are free.

    One caller alone can fill half of the budget, and each further one half of the rest. So a caller with few bytes can
    add more, although others have filled their part.
    """

    def __init__(self, max_bytes: int) -> None:
        self._free = max_bytes
        self._held = Counter[Caller]()

    def take(self, caller: Caller, *, num_bytes: int) -> bool:
        """Add `num_bytes` and return True, or return False if the caller would have too many bytes."""
        free = self._free - num_bytes
        if self._held[caller] + num_bytes > free:
            return False
        self._free = free
        self._held[caller] += num_bytes
        return True

    def release(self, held: Mapping[Caller, int]) -> None:
        """Free bytes that are no longer buffered."""
        self._free += sum(held.values())
        self._held = self._held - Counter(held)  # without callers that hold nothing
