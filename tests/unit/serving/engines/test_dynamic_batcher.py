"""Dynamic batching of concurrent requests."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.engines.dynamic_batcher import DynamicBatcher, PassResult, Window

Batcher = DynamicBatcher[int, int]
CLIENT_COST = 3


class Model:
    """A model that doubles numbers and records its batches. Each batch waits for the semaphore
    `gate`.

    It answers the first `max_pass` rows that it is offered.
    """

    def __init__(self, max_pass: int) -> None:
        self.max_pass = max_pass
        self.max_costs: list[int] = []
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)

    def run(self, rows: list[int], max_cost: int) -> PassResult[int]:
        self.batches.append(rows[: self.max_pass])
        self.max_costs.append(max_cost)
        self.started.release()
        self.gate.acquire()
        if -1 in rows:
            raise ValueError("row -1")
        return PassResult(
            {index: 2 * row for index, row in enumerate(rows[: self.max_pass])}, [1.0] * len(rows)
        )

    async def wait_started(self) -> None:
        await asyncio.to_thread(self.started.acquire)


async def _submit(batcher: Batcher, *rows: int, client: str = "a") -> "asyncio.Task[list[int]]":
    task = asyncio.create_task(batcher.submit([(row, 1) for row in rows], client=client))
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
        assert await (await _submit(batcher, *range(10))) == [2 * row for row in range(10)]
        assert model.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]

    _run(scenario, max_rows=4)


def test_a_small_request_of_another_client_does_not_wait_for_a_large_one() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        await _submit(batcher, 0)
        await model.wait_started()
        large = [await _submit(batcher, *range(1, 21)) for _ in range(3)]
        small = await _submit(batcher, 30, client="b")
        model.gate.release(2)
        assert await small == [60]
        assert not any(request.done() for request in large)
        model.gate.release(30)
        assert [await request for request in large] == [[2 * row for row in range(1, 21)]] * 3
        assert model.batches[1] == [30, 1, 2, 3]  # at most `CLIENT_COST` of each client
        assert model.max_costs[:3] == [1000, 2 * CLIENT_COST, CLIENT_COST]

    _run(scenario, max_rows=8)


def test_rows_that_a_call_leaves_out_stay_in_the_queue() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.gate.release(9)
        assert await (await _submit(batcher, 1, 2, 3, 4, 5)) == [2, 4, 6, 8, 10]
        assert model.batches == [[1, 2], [3, 4], [5]]

    _run(scenario, max_rows=8, max_pass=2)


def test_an_error_affects_only_the_request_at_fault() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        before, bad = await _submit(batcher, 3), await _submit(batcher, -1, 1, client="b")
        after = await _submit(batcher, 2)
        model.gate.release(9)
        assert await first == [0]
        with pytest.raises(ValueError, match="row -1"):
            await bad
        assert (await before, await after) == ([6], [4])

    _run(scenario, max_rows=8)


def test_requests_that_fail_take_turns_like_others() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        first = await _submit(batcher, 0)
        await model.wait_started()
        failing = [await _submit(batcher, -1, client="b") for _ in range(3)]
        good = [await _submit(batcher, row, client="c") for row in (1, 2)]
        model.gate.release(9)
        assert await first == [0]
        assert await asyncio.gather(*good) == [[2], [4]]
        assert all(
            isinstance(each, ValueError)
            for each in await asyncio.gather(*failing, return_exceptions=True)
        )
        assert model.batches == [[0], [-1], [1], [-1], [2], [-1]]

    _run(scenario, max_rows=1)


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


def test_the_rows_of_a_cancelled_request_are_discarded_and_those_in_a_call_are_charged() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        large = await _submit(batcher, *range(20))
        await model.wait_started()
        large.cancel()
        await asyncio.sleep(0)
        assert batcher._queue.num_waiting == 0
        small, other = await _submit(batcher, 1), await _submit(batcher, 2, client="b")
        model.gate.release(3)
        assert (await small, await other) == ([2], [4])
        assert model.batches[1:] == [[2, 1]]  # the client that cancelled has been served before

    _run(scenario, max_rows=8)


def test_the_batcher_starts_again_after_a_pause() -> None:
    async def scenario(batcher: Batcher, model: Model) -> None:
        model.gate.release(2)
        assert await (await _submit(batcher, 1)) == [2]
        assert await (await _submit(batcher, 2)) == [4]

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
    scenario: Callable[[Batcher, Model], Coroutine[Any, Any, None]],
    *,
    max_rows: int,
    max_pass: int = 1000,
    linger_s: float = 0,
) -> None:
    model = Model(max_pass)

    async def bounded(executor: ThreadPoolExecutor) -> None:
        window = Window(max_rows, 1000, 1000, CLIENT_COST)
        batcher = DynamicBatcher(
            model.run, executor=executor, window=window, full_rows=max_rows, linger_s=linger_s
        )
        await asyncio.wait_for(scenario(batcher, model), 30)

    with ThreadPoolExecutor(1) as executor:
        try:
            asyncio.run(bounded(executor))
        finally:
            model.gate.release(100)
