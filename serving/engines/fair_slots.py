"""Slots for work that runs at the same time, shared fairly between clients."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from serving.engines.fair_queue import FairQueue

ResultT = TypeVar("ResultT")

LEFT_SHARE = 3  # a client holds at most this many times the slots that are left: three quarters, if it is alone


def may_start(*, held: int, total: int, num_slots: int) -> bool:
    """Return True if a client that holds `held` of the `total` occupied slots may occupy another one.

    Running work cannot be stopped for other clients, so some slots stay free for a client that has none.
    """
    if total >= num_slots:
        return False
    return held == 0 or held + 1 <= LEFT_SHARE * (num_slots - total - 1)


def max_held_alone(num_slots: int) -> int:
    """Return the number of slots that a client can occupy if no other client occupies one."""
    held = 0
    while may_start(held=held, total=held, num_slots=num_slots):
        held += 1
    return held


class FairSlots:
    """A fixed number of slots, for which clients wait in a `FairQueue`. Use it in one event loop."""

    def __init__(self, num_slots: int) -> None:
        self._num_slots = num_slots
        self._held: Counter[str] = Counter()
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()

    @asynccontextmanager
    async def held(self, client: str, *, cost: float) -> AsyncIterator[None]:
        """Wait for a slot, and hold it during the block. A cancelled call leaves the queue."""
        started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entries = self._queue.add(client, [(started, cost)])
        self._start()
        try:
            await started
            yield
        finally:
            if started.done() and not started.cancelled():
                self._held[client] -= 1
                if not self._held[client]:
                    del self._held[client]
            else:
                self._queue.discard(entries)
            self._start()

    async def run(self, call: Callable[[], ResultT], *, client: str, cost: float) -> ResultT:
        """Return the result of a call in a thread.

        A cancelled caller does not wait for the thread, which holds its slot until it ends.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.held(client, cost=cost))
            work = asyncio.create_task(_run_in_thread(call, stack.pop_all()))
        return await asyncio.shield(work)

    def _start(self) -> None:
        """Give free slots to waiting clients."""
        while entry := self._queue.first(allowed=self._may_start):
            if entry.item.done():  # cancelled
                self._queue.discard([entry])
                continue
            self._queue.serve([entry])
            self._held[entry.client] += 1
            entry.item.set_result(None)

    def _may_start(self, client: str) -> bool:
        return may_start(held=self._held[client], total=self._held.total(), num_slots=self._num_slots)


async def _run_in_thread(call: Callable[[], ResultT], slot: AsyncExitStack) -> ResultT:
    """Return the result of a call in a thread, and release the slot when it ends."""
    async with slot:
        return await asyncio.to_thread(call)
