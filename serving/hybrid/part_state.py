"""The state of a hybrid's part on a replica: time-outs in a row, and its errors in the log."""

import logging
import time
from collections.abc import Callable

from serving.http.schemas import RequestError, is_too_long
from tailorbird.registry.hybrid_routing import PartName

MAX_TIMEOUTS = 3  # time-outs in a row after which requests skip the part
COOL_DOWN_S = 30.0  # time for which they skip it
LOG_S = 60.0  # minimum time between two errors of a part in the log

_log = logging.getLogger("ray.serve")


class PartState:
    """The state of one part. `version` is that of the hybrid."""

    def __init__(
        self, name: PartName, *, version: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._name = name
        self._version = version
        self._clock = clock
        self._num_timeouts = 0
        self._away_until = float("-inf")
        self._logged_at = float("-inf")

    @property
    def is_away(self) -> bool:
        """True for `COOL_DOWN_S` after a time-out, if the last `MAX_TIMEOUTS` requests or more
        timed out."""
        return self._clock() < self._away_until

    def answered(self) -> None:
        """Record an answer: the part is available."""
        self._num_timeouts = 0
        self._away_until = float("-inf")

    def failed(self, error: Exception) -> None:
        """Record a failure, and write it to the log unless the log has another one of the last
        `LOG_S`.

        A request that exceeds the part's length is not a failure of the part.
        """
        if is_too_long(error):
            return
        now = self._clock()
        if isinstance(error, TimeoutError) or (
            isinstance(error, RequestError) and error.status == 504
        ):
            self._num_timeouts += 1
            if self._num_timeouts >= MAX_TIMEOUTS:
                self._away_until = now + COOL_DOWN_S
        if now - self._logged_at >= LOG_S:
            self._logged_at = now
            _log.error(
                "the %s part of %s did not answer", self._name, self._version, exc_info=error
            )
