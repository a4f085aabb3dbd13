"""Beside the champion, a version on trial: who is drawn for it, and its answers that nobody waits for."""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

CHALLENGER = "trial"
Arm = Literal["champion", "canary", "shadow"]

QUIET_S = 0.01
"""How long the champion must have had nothing to do: clients that were just answered ask again within less."""
MAX_BYTES = 16 << 20
"""What waits to be shown to the version on trial; more is not taken."""
REQUEST_BYTES = 4096
"""About what a request holds beside its body."""
TELL_S = 60.0

_log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class TrafficSplit:
    """The shares of the requests for the champion that the version on trial gets."""

    digest: str
    """The version's: each has its own draw, so that the same people are not always the first."""
    canary: float = 0.0
    shadow: float = 0.0

    @classmethod
    def of(cls, named: dict[str, Any] | None) -> "TrafficSplit | None":
        """As `user_config` has it, if it has one."""
        if named is None:
            return None
        return cls(named["digest"], canary=named.get("canary", 0.0), shadow=named.get("shadow", 0.0))

    def draws(self, arm: Literal["canary", "shadow"], unit: str) -> bool:
        """Whether `unit`, a subject or a request id, is drawn: the same at each request and in each replica, and still
        so when the share grows."""
        share = self.canary if arm == "canary" else self.shadow
        found = hashlib.sha256(f"{arm}|{self.digest}|{unit}".encode("utf-8", "surrogatepass")).digest()
        return int.from_bytes(found[:8], "big") < share * 2**64


class ShadowRunner:
    """Answers that nobody waits for, one after the other, each when `is_quiet`; lives in one event loop.

    What waits is bounded: what comes when it is full is not taken, and counted. So a champion that is never done with
    its own requests gets no shadow at all.
    """

    def __init__(self, is_quiet: Callable[[], bool]) -> None:
        self._is_quiet = is_quiet
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._num_bytes = 0
        self._told_at = float("-inf")
        self.num_dropped = 0

    def add(self, answer: Callable[[], Awaitable[object]], *, num_bytes: int) -> None:
        """Takes a request, `num_bytes` long, whose `answer` awaits `quiet` before each pass of the model."""
        num_bytes += REQUEST_BYTES
        if self._num_bytes + num_bytes > MAX_BYTES:
            self._drop()
            return
        self._num_bytes += num_bytes
        task = asyncio.create_task(self._answer(answer, num_bytes=num_bytes))
        self._tasks.add(task)  # the loop itself holds no task
        task.add_done_callback(self._tasks.discard)

    async def quiet(self) -> None:
        """Waits until the champion has had nothing to do for a moment."""
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
        if now - self._told_at > TELL_S:
            self._told_at = now
            _log.warning("%d requests so far were not shown to the version on trial: too many wait", self.num_dropped)
