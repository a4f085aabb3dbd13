"""Slots that are shared between clients."""

import asyncio
import threading
from contextlib import AsyncExitStack

import pytest

from serving.limits import FairSlots

pytestmark = pytest.mark.timeout(60)


@pytest.mark.anyio
async def test_a_client_starts_while_another_has_long_work_and_a_queue() -> None:
    slots, ended = FairSlots(4), asyncio.Event()
    started: list[str] = []

    async def work(client: str) -> None:
        async with slots.held(client, cost=100):
            started.append(client)
            await ended.wait()

    tasks = [asyncio.create_task(work("many")) for _ in range(10)]
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert started == ["many"] * 3
    async with slots.held("few", cost=1):
        assert started == ["many"] * 3
    ended.set()
    await asyncio.gather(*tasks)
    assert started == ["many"] * 10


@pytest.mark.anyio
async def test_a_cancelled_wait_leaves_the_queue_and_a_cancelled_start_frees_its_slot() -> None:
    slots = FairSlots(1)

    async def work() -> None:
        async with slots.held("b", cost=1):
            raise AssertionError("this must not start")

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(slots.held("a", cost=1))
        waiting, started = asyncio.create_task(work()), asyncio.create_task(work())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
    started.cancel()  # after it was given the slot, and before it ran
    await asyncio.gather(waiting, started, return_exceptions=True)
    assert started.cancelled()
    async with slots.held("c", cost=1):
        assert slots.budget.held.total() == 1
    assert slots.budget.held.total() == 0


@pytest.mark.anyio
async def test_a_thread_holds_its_slot_until_it_ends_even_if_its_caller_is_cancelled() -> None:
    go = threading.Event()

    slots = FairSlots(1)
    cancelled = asyncio.create_task(slots.run(lambda: go.wait(10), client="a", cost=1))
    await asyncio.sleep(0)
    cancelled.cancel()
    other = asyncio.create_task(slots.run(go.is_set, client="b", cost=1))
    await asyncio.sleep(0.01)
    assert cancelled.cancelled()  # it does not wait for the thread
    assert slots.budget.held == {"a": 1}
    go.set()
    assert await other
    assert slots.budget.held == {}
