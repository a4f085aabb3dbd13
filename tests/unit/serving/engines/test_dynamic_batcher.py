"""Dynamic batching of concurrent requests."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serving.engines.dynamic_batcher import DynamicBatcher, PassResult, Window

pytestmark = pytest.mark.anyio
CLIENT_COST = 3
NUM_CALLS = 100  # more than any test needs


class Model:
    """A batcher over a model that doubles numbers and records its batches.

    Each call waits for the semaphore `gate`, and answers the first six rows that it is offered.
    """

    def __init__(self, executor: ThreadPoolExecutor, *, max_rows: int = 8, linger_s: float = 0):
        self.max_costs: list[int] = []
        self.batches: list[list[int]] = []
        self.gate = threading.Semaphore(0)
        self.started = threading.Semaphore(0)
        self.batcher = DynamicBatcher[int, int](
            self._run,
            executor=executor,
            window=Window(rows=max_rows, cost=1000, pass_cost=1000, client_cost=CLIENT_COST),
            full_rows=max_rows,
            linger_s=linger_s,
        )

    def _run(self, offered: list[int], max_cost: int) -> PassResult[int]:
        rows = offered[:6]
        self.batches.append(rows)
        self.max_costs.append(max_cost)
        self.started.release()
        self.gate.acquire()
        if -1 in rows:
            raise ValueError("row -1")
        results = {index: 2 * row for index, row in enumerate(rows)}
        return PassResult(results, [1.0] * len(offered))

    async def submit(self, *rows: int, client: str = "a") -> "asyncio.Task[list[int]]":
        """Start a request and return it."""
        work = self.batcher.submit([(row, 1) for row in rows], client=client)
        task = asyncio.create_task(work)
        await asyncio.sleep(0)
        return task

    async def busy(self, *rows: int) -> "asyncio.Task[list[int]]":
        """Start a request, wait for its call, which waits for the gate, and return it."""
        task = await self.submit(*rows)
        await asyncio.to_thread(self.started.acquire)
        return task


async def answers(*requests: "asyncio.Task[list[int]]") -> list[list[int]]:
    return [await request for request in requests]


@pytest.fixture
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    options: dict[str, Any] = getattr(request, "param", {})
    with ThreadPoolExecutor(1) as executor:
        model = Model(executor, **options)
        yield model
        model.gate.release(NUM_CALLS)


async def test_a_lone_request_starts_at_once_and_later_ones_form_one_batch_even_after_a_pause(
    model: Model,
) -> None:
    assert model.batcher.idle_s() > 1e9  # there was no call yet
    first = await model.busy(1)
    assert model.batcher.idle_s() == 0
    later = [await model.submit(row) for row in (2, 3, 4)]
    model.gate.release(NUM_CALLS)
    assert await answers(first, *later) == [[2], [4], [6], [8]]
    await asyncio.sleep(0.01)
    assert 0 < model.batcher.idle_s() < 30
    assert await (await model.submit(5)) == [10]
    assert model.batches == [[1], [2, 3, 4], [5]]


async def test_a_small_request_of_another_client_does_not_wait_for_a_large_one(
    model: Model,
) -> None:
    await model.busy(0)
    large = [await model.submit(*range(1, 21)) for _ in range(3)]
    small = await model.submit(30, client="b")
    model.gate.release(2)
    assert await small == [60]
    assert not any(request.done() for request in large)
    model.gate.release(NUM_CALLS)
    assert await answers(*large) == [[2 * row for row in range(1, 21)]] * 3
    assert model.batches[1] == [30, 1, 2, 3]  # at most `CLIENT_COST` of each client
    assert model.max_costs[:3] == [1000, 2 * CLIENT_COST, CLIENT_COST]


async def test_an_error_affects_only_the_request_at_fault(model: Model) -> None:
    await model.busy(0)
    before = await model.submit(3)
    bad = await model.submit(-1, 1, client="b")
    after = await model.submit(2)
    model.gate.release(NUM_CALLS)
    with pytest.raises(ValueError, match="row -1"):
        await bad
    assert await answers(before, after) == [[6], [4]]


async def test_the_rows_of_a_cancelled_request_are_discarded_and_those_in_a_call_are_charged(
    model: Model,
) -> None:
    large = await model.busy(*range(20))
    queued = await model.submit(7)
    for cancelled in (large, queued):
        cancelled.cancel()
    await asyncio.sleep(0)
    small = await model.submit(1)
    other = await model.submit(2, client="b")
    model.gate.release(NUM_CALLS)
    assert await answers(small, other) == [[2], [4]]
    assert model.batches[1:] == [[2, 1]]  # the client that cancelled has been served before


@pytest.mark.parametrize("model", [{"max_rows": 2, "linger_s": 60}], indirect=True)
async def test_a_batch_waits_for_clients_that_were_just_answered_unless_it_is_full(
    model: Model,
) -> None:
    first = await model.busy(0)
    second = await model.submit(1)
    model.gate.release(NUM_CALLS)
    await first
    again = await model.submit(2)
    assert await answers(again, second) == [[4], [2]]
    assert await (await model.submit(3, 4)) == [6, 8]
    assert model.batches == [[0], [1, 2], [3, 4]]
