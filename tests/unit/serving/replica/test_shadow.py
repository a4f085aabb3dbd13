"""Shadow answers wait until the champion is idle, and their queue is bounded."""

import asyncio
from functools import partial

import pytest

from serving.replica import shadow
from serving.replica.shadow import ShadowRunner

pytestmark = pytest.mark.anyio


async def test_shadows_run_one_by_one_despite_errors() -> None:
    turn = asyncio.Lock()
    answered = []
    shadows = ShadowRunner(lambda: True)

    async def answer(number: int) -> None:
        assert not turn.locked()
        async with turn:
            await asyncio.sleep(0)
        if number == 1:
            raise ValueError("cannot be answered")
        answered.append(number)

    for number in range(4):
        shadows.add(partial(answer, number), num_bytes=10, caller=None)
    await asyncio.gather(*shadows._tasks)
    assert answered == [0, 2, 3]


async def test_a_key_that_fills_the_queue_loses_only_its_own_requests_and_answered_ones_free_space(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shadow, "MAX_BYTES", 7 * (shadow.REQUEST_BYTES + 100))
    gate = asyncio.Event()
    shadows = ShadowRunner(lambda: True)
    for caller in ["flood"] * 10 + ["calm"]:
        shadows.add(gate.wait, num_bytes=100, caller=caller)
    assert (shadows.num_dropped, len(shadows._tasks)) == (7, 4)
    gate.set()
    await asyncio.gather(*shadows._tasks)
    shadows.add(gate.wait, num_bytes=100, caller="flood")
    assert shadows.num_dropped == 7
