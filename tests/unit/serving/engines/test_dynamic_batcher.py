"""Dynamic batching of concurrent requests."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.engines.dynamic_batcher import DynamicBatcher

Batcher = DynamicBatcher[int, int]


class Model:
    """A model that doubles numbers and records its batches. Each batch waits for the semaphore `gate`."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def run(self, rows: list[int]) -> Sequence[int]:
        self.batches.append(rows)
        self.started.release()
        self.gate.acquire()
        if -1 in rows:
            raise ValueError("row -1")
        return [2 * row for row in rows]

    async def wait_started(self) -> None:
        await asyncio.to_thread(self.started.acquire)


async def _submit(batcher: Batcher, *rows: int) -> "asyncio.Task[list[int]]":
    task = asyncio.create_task(batcher.submit(list(rows)))
    await asyncio.sleep(0)
    return task


def test_a_lone_request_starts_at_once_and_later_ones_form_one_batch() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 1)
        await model.wait_started()
        others = [await _submit(batcher, row) for row in (2, 3, 4)]
        model.gate.release(2)
        assert await first == [2]
        assert await asyncio.gather(*others) == [[4], [6], [8]]
        assert model.batches == [[1], [2, 3, 4]]

    _run(scenario, max_rows=8)


def test_a_request_larger_than_a_batch_is_split_in_order() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.gate.release(9)
        assert await batcher.submit(list(range(10))) == [2 * row for row in range(10)]
        assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    _run(scenario, max_rows=4)


def test_requests_are_processed_in_order_of_arrival() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        large, small = await _submit(batcher, 1, 2, 3, 4, 5), await _submit(batcher, 6)
        model.gate.release(3)
        await asyncio.gather(first, large, small)
        assert model.batches == [[0], [1, 2, 3, 4], [5, 6]]

    _run(scenario, max_rows=4)


def test_an_error_affects_only_the_requests_of_its_batch() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        bad, after = await _submit(batcher, -1, 1), await _submit(batcher, 2)
        model.gate.release(3)
        assert await first == [0]
        with pytest.raises(ValueError, match="row -1"):
            await bad
        assert await after == [4]

    _run(scenario, max_rows=2)


def test_a_request_that_is_cancelled_in_the_queue_costs_no_pass() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        cancelled, other = await _submit(batcher, 1), await _submit(batcher, 2)
        cancelled.cancel()
        await asyncio.sleep(0)
        model.gate.release(2)
        assert await first == [0]
        assert await other == [4]
        assert model.batches == [[0], [2]]

    _run(scenario, max_rows=8)


def test_the_batcher_starts_again_after_a_pause() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.gate.release(2)
        assert await batcher.submit([1]) == [2]
        assert await batcher.submit([2]) == [4]

    _run(scenario, max_rows=8)


def test_a_batch_waits_for_clients_that_were_just_answered() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        second = await _submit(batcher, 1)
        model.gate.release(2)
        assert await first == [0]
        first = await _submit(batcher, 2)
        assert (await first, await second) == ([4], [2])
        assert model.batches == [[0], [1, 2]]

    _run(scenario, max_rows=8, linger_s=60)


def test_a_full_batch_does_not_wait() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        full = await _submit(batcher, 1, 2)
        model.gate.release(2)
        assert await first == [0]
        assert await full == [2, 4]

    _run(scenario, max_rows=2, linger_s=60)


def test_idle_time_starts_at_the_end_of_the_last_call() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        assert batcher.idle_s() > 1e9  # there was no call yet
        first = await _submit(batcher, 0)
        assert batcher.idle_s() == 0
        await model.wait_started()
        assert batcher.idle_s() == 0
        model.gate.release()
        await first
        await asyncio.sleep(0.01)
        assert 0 < batcher.idle_s() < 30

    _run(scenario, max_rows=8)


def _run(
    scenario: Callable[[Batcher, Model], Coroutine[Any, Any, None]], *, max_rows: int, linger_s: float = 0
) -> None:
    model = Model()

    async def bounded(executor: ThreadPoolExecutor) -> None:
        batcher = DynamicBatcher(model.run, executor=executor, max_rows=max_rows, linger_s=linger_s)
        await asyncio.wait_for(scenario(batcher, model), 30)

    with ThreadPoolExecutor(1) as executor:
        try:
            asyncio.run(bounded(executor))
        finally:
            model.gate.release(100)
