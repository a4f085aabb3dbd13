"""Dynamic batching: when the model becomes idle, all waiting requests form the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Generic, TypeVar

RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")


@dataclass
class _Request(Generic[RowT, ResultT]):
    """A request's rows and its results so far."""

    rows: Sequence[RowT]
    done: asyncio.Future[list[ResultT]]
    num_taken: int = 0
    results: list[ResultT] = field(default_factory=list)


Shares = list[tuple[_Request[RowT, ResultT], int]]  # the requests of a batch and their numbers of rows, in order


class DynamicBatcher(Generic[RowT, ResultT]):
    """A batcher that calls `run(rows) -> results` on `executor`, one call at a time, with rows in order of arrival.

    If the model is idle, a request starts immediately. Requests that arrive during a call form the next batch. Clients
    that send one request after another would then form two groups, each with half of the requests, and the calls would
    alternate between them. To prevent this, a call waits up to `linger_s` for the next requests of the clients that the
    previous call answered. A request with more than `max_rows` rows is split over several calls. Use the batcher in one
    event loop.

    Ray's `serve.batch` is not used: it collects its next batch before the model is idle, rejects items that are larger
    than a batch, and moves items that do not fit to the end of the queue.
    """

    def __init__(
        self, run: Callable[[list[RowT]], Sequence[ResultT]], *, executor: Executor, max_rows: int, linger_s: float
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_rows = max_rows
        self._linger_s = linger_s
        self._waiting: deque[_Request[RowT, ResultT]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._gathered = asyncio.Event()
        self._num_expected = 0
        self._ended_at = float("-inf")

    async def submit(self, rows: Sequence[RowT]) -> list[ResultT]:
        """Return the results of the rows, in order. Errors of `run` are raised. A cancelled call leaves the queue."""
        request = _Request[RowT, ResultT](rows, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._is_gathered():
            self._gathered.set()
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await request.done

    def idle_s(self) -> float:
        """Return the number of seconds since the last call ended, or 0 during a call."""
        return 0.0 if self._task is not None else asyncio.get_running_loop().time() - self._ended_at

    def _take(self) -> tuple[list[RowT], Shares[RowT, ResultT]]:
        """Return the next batch."""
        rows: list[RowT] = []
        shares: Shares[RowT, ResultT] = []
        while self._waiting and len(rows) < self._max_rows:
            request = self._waiting[0]
            if request.done.done():
                self._waiting.popleft()
                continue
            part = request.rows[request.num_taken : request.num_taken + self._max_rows - len(rows)]
            rows.extend(part)
            shares.append((request, len(part)))
            request.num_taken += len(part)
            if request.num_taken == len(request.rows):
                self._waiting.popleft()
        return rows, shares

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._linger()
                rows, shares = self._take()
                if not shares:
                    return
                try:
                    results = await loop.run_in_executor(self._executor, self._run, rows)
                    assert len(results) == len(rows), f"{len(rows)} rows gave {len(results)} results"
                except Exception as error:
                    for request, _ in shares:
                        if not request.done.done():
                            request.done.set_exception(error)
                else:
                    _distribute(results, shares)
                self._num_expected = len(self._waiting) + sum(request.done.done() for request, _ in shares)
                self._ended_at = loop.time()
        finally:
            self._task = None

    async def _linger(self) -> None:
        loop = asyncio.get_running_loop()
        if self._is_gathered() or self._ended_at + self._linger_s <= loop.time():
            return
        self._gathered.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._ended_at + self._linger_s):
                await self._gathered.wait()

    def _is_gathered(self) -> bool:
        num_rows = sum(len(request.rows) for request in self._waiting)
        return len(self._waiting) >= self._num_expected or num_rows >= self._max_rows


def _distribute(results: Sequence[ResultT], shares: Shares[RowT, ResultT]) -> None:
    start = 0
    for request, count in shares:
        request.results.extend(results[start : start + count])
        start += count
        if len(request.results) == len(request.rows) and not request.done.done():
            request.done.set_result(request.results)
