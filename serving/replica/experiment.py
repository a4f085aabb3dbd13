"""The experiment on a challenger: its arms, and its shadow answers that no client waits for."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Literal

CHALLENGER = "challenger"
Arm = Literal["champion", "canary", "shadow"]

QUIET_S = 0.01
"""How long the champion must have been idle: clients that were just answered send their next request within less."""
MAX_BYTES = 16 << 20  # size of the requests that wait for the challenger; more are dropped
REQUEST_BYTES = 4096  # approximate size of a request besides its body
WARN_S = 60.0  # least seconds between two warnings of dropped requests

_log = logging.getLogger("ray.serve")


class ShadowRunner:
    """Runs shadow answers one after the other, each when `is_quiet`; lives in one event loop.

    The queue is bounded, and requests beyond it are dropped and counted: a champion that is never idle gets no shadow.
    """

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        self._is_quiet = is_quiet
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_bytes = 0
        self._warned_at = float("-inf")
        self.num_dropped = 0

    def add(self, answer: Callable[[], Awaitable[object]], *, num_bytes: int) -> None:
        """Queue a request of `num_bytes`, whose `answer` awaits `quiet` before each pass of the model."""
        num_bytes += REQUEST_BYTES
        if self._num_bytes + num_bytes > MAX_BYTES:
            self._drop()
            return
        self._num_bytes += num_bytes
        task = asyncio.create_task(self._answer(answer, num_bytes=num_bytes))
        self._tasks.add(task)  # the loop itself holds no task
        task.add_done_callback(self._tasks.discard)

    async def quiet(self) -> None:
        """Wait until the champion has been idle for a moment."""
        while not self._is_quiet():
            await asyncio.sleep(QUIET_S)

    async def _answer(self, answer: Callable[[], Awaitable[object]], *, num_bytes: int) -> None:
        try:
            async with self._turn:
                await answer()
        except Exception:
            _log.exception("a shadow was not answered")
        finally:
            self._num_bytes -= num_bytes

    def _drop(self) -> None:
        self.num_dropped += 1
        now = asyncio.get_running_loop().time()
        if now - self._warned_at > WARN_S:
            self._warned_at = now
            _log.warning("%d requests so far were not shown to the challenger: too many wait", self.num_dropped)
