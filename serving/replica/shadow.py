"""The runner of shadow answers of a challenger, which no client waits for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serving.limits import Budget, Client

QUIET_S = 0.01
"""Idle time of the champion before a shadow pass. Clients that send one request after another need
less time between a response and the next request."""
MAX_BYTES = 16 << 20  # maximum size of the queued shadow requests; further ones are dropped
REQUEST_BYTES = 4096  # approximate memory of a queued request in addition to its body
WARN_S = 60.0  # minimum time between two warnings about dropped requests

_log = logging.getLogger("ray.serve")


class ShadowRunner:
    """A runner of shadow answers, one at a time and only while `is_quiet` returns True. Use it in
    one event loop.

    The queue is bounded, in all and for each API key (see `Budget`), so that a key with many
    requests does not decide alone which are compared. Requests beyond the bounds are dropped and
    counted, for example if the champion is never idle.
    """

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        self._is_quiet = is_quiet
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued = Budget(MAX_BYTES)
        self._warned_at = float("-inf")
        self.num_dropped = 0

    def add(
        self, answer: Callable[[], Awaitable[object]], *, num_bytes: int, caller: Client
    ) -> None:
        """Queue a request of `num_bytes`. `answer` must await `quiet` before each pass of the
        model."""
        num_bytes += REQUEST_BYTES
        if not self._queued.take(caller, num_bytes):
            self._drop()
            return
        task = asyncio.create_task(self._answer(answer, num_bytes=num_bytes, caller=caller))
        self._tasks.add(task)  # the event loop keeps only weak references to tasks
        task.add_done_callback(self._tasks.discard)

    async def quiet(self) -> None:
        """Wait until `is_quiet` returns True."""
        while not self._is_quiet():
            await asyncio.sleep(QUIET_S)

    async def _answer(
        self, answer: Callable[[], Awaitable[object]], *, num_bytes: int, caller: Client
    ) -> None:
        try:
            async with self._turn:
                await answer()
        except Exception:
            _log.exception("a shadow request failed")
        finally:
            self._queued.release(caller, num_bytes)

    def _drop(self) -> None:
        self.num_dropped += 1
        now = asyncio.get_running_loop().time()
        if now - self._warned_at > WARN_S:
            self._warned_at = now
            _log.warning(
                "%d shadow requests have been dropped because the queue is full", self.num_dropped
            )
