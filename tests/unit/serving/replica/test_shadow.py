"""Shadow answers wait until the champion is idle, and their queue is bounded."""

import asyncio
from itertools import count

import pytest

from serving.replica import shadow
from serving.replica.shadow import ShadowRunner


@pytest.mark.anyio
async def test_shadows_wait_for_an_idle_champion_and_run_one_by_one_despite_errors() -> None:
    quiet, answered, running = False, [], 0
    shadows = ShadowRunner(lambda: quiet)

    async def answer(number: int) -> None:
        nonlocal running
        running += 1
        assert running == 1
        await shadows.quiet()
        await asyncio.sleep(0)
        running -= 1
        if number == 1:
            raise ValueError("cannot be answered")
        answered.append(number)

    for number in range(4):
        shadows.add(lambda number=number: answer(number), num_bytes=10, caller=None)  # type: ignore[misc]
    await asyncio.sleep(3 * shadow.QUIET_S)
    assert answered == []
    quiet = True
    await asyncio.gather(*shadows._tasks)
    assert (answered, shadows.num_dropped) == ([0, 2, 3], 0)


@pytest.mark.anyio
async def test_a_key_that_fills_the_queue_loses_only_its_own_requests_and_answered_ones_free_space(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shadow, "MAX_BYTES", 7 * (shadow.REQUEST_BYTES + 100))
    caplog.set_level("WARNING", logger="ray.serve")

    gate, numbers = asyncio.Event(), count()

    async def answer() -> None:
        await gate.wait()
        next(numbers)

    shadows = ShadowRunner(lambda: True)
    for _ in range(10):
        shadows.add(answer, num_bytes=100, caller="flood")
    assert (shadows.num_dropped, len(shadows._tasks)) == (7, 3)
    shadows.add(answer, num_bytes=100, caller="calm")
    assert (shadows.num_dropped, len(shadows._tasks)) == (7, 4)
    gate.set()
    await asyncio.gather(*shadows._tasks)
    shadows.add(answer, num_bytes=100, caller="flood")
    await asyncio.gather(*shadows._tasks)
    assert (next(numbers), shadows.num_dropped) == (5, 7)
