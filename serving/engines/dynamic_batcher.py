"""Between requests and the model: whatever waits when the engine is free goes through it together."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Request:
    """One request: its rows, the results so far, and who waits for them."""

    rows: Sequence[Any]
    done: asyncio.Future[list[Any]]
    taken: int = 0
    results: list[Any] = field(default_factory=list)


class DynamicBatcher:
    """Runs `run(rows) -> results` on `executor`, one call at a time, over rows of waiting requests in order of arrival.

    A lone request starts at once, and while a call runs the next batch gathers by itself. Clients that wait for
    an answer before they ask again would fall into two groups that take turns, each with half a batch: so a call that
    follows another within `linger_s` waits, no longer, until as many requests are there as were when the other ended.
    A request larger than `max_rows` goes through in several calls. (`serve.batch` gathers its next batch *before* the
    engine is free, refuses an item larger than a batch and sends one that does not fit to the end of the queue.)
    Lives in one event loop.
    """

    def __init__(
        self, run: Callable[[list[Any]], Sequence[Any]], *, executor: Executor, max_rows: int, linger_s: float
    ) -> None:
        self._run = run
        self._executor = executor
        self._max_rows = max_rows
        self._linger_s = linger_s
        self._waiting: deque[_Request] = deque()
        self._task: asyncio.Task[None] | None = None
        self._gathered = asyncio.Event()
        self._num_expected = 0
        self._ended_at = float("-inf")

    async def submit(self, rows: Sequence[Any]) -> list[Any]:
        """Results of the rows, in their order; raises what `run` raises. A cancelled caller leaves the queue."""
        job = _Request(rows, asyncio.get_running_loop().create_future())
        self._waiting.append(job)
        if self._is_gathered():
            self._gathered.set()
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        return await job.done

    def idle_s(self) -> float:
        """Seconds since there was anything to do; 0 while there is."""
        return 0.0 if self._task is not None else asyncio.get_running_loop().time() - self._ended_at

    def take(self) -> tuple[list[Any], list[tuple[_Request, int]]]:
        """The next rows, and how many of them belong to which request."""
        rows: list[Any] = []
        shares: list[tuple[_Request, int]] = []
        while self._waiting and len(rows) < self._max_rows:
            job = self._waiting[0]
            if job.done.done():
                self._waiting.popleft()
                continue
            part = job.rows[job.taken : job.taken + self._max_rows - len(rows)]
            rows.extend(part)
            shares.append((job, len(part)))
            job.taken += len(part)
            if job.taken == len(job.rows):
                self._waiting.popleft()
        return rows, shares

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._linger()
                rows, shares = self.take()
                if not shares:
                    return
                try:
                    results = await loop.run_in_executor(self._executor, self._run, rows)
                    assert len(results) == len(rows), f"{len(rows)} rows gave {len(results)} results"
                except Exception as error:
                    for job, _ in shares:
                        if not job.done.done():
                            job.done.set_exception(error)
                else:
                    _distribute(results, shares)
                self._num_expected = len(self._waiting) + sum(job.done.done() for job, _ in shares)
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
        return len(self._waiting) >= self._num_expected or sum(len(job.rows) for job in self._waiting) >= self._max_rows


def _distribute(results: Sequence[Any], shares: list[tuple[_Request, int]]) -> None:
    start = 0
    for job, count in shares:
        job.results.extend(results[start : start + count])
        start += count
        if len(job.results) == len(job.rows) and not job.done.done():
            job.done.set_result(job.results)
