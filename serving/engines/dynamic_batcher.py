"""Dynamic batching: when the model becomes idle, the next pass is formed from all waiting
requests."""

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, NamedTuple, TypeVar

from serving.limits import Entry, FairQueue

RowT = TypeVar("RowT")
ResultT = TypeVar("ResultT")


class PassResult(NamedTuple, Generic[ResultT]):
    """The result of a pass over some of the rows that were offered."""

    results: Mapping[int, ResultT]
    """Results by the position of the row. The first row is always among them; the others stay in
    the queue."""
    costs: Sequence[float]
    """Cost of each row that was offered, in tokens."""


class Window(NamedTuple):
    """The rows that are offered to a call. Costs are in tokens."""

    rows: int
    """Maximum number of rows."""
    cost: int
    """Maximum cost of all rows."""
    pass_cost: int
    """Maximum cost of the rows that a call runs."""
    client_cost: int
    """Maximum cost of the rows of one client while several clients share the model."""


@dataclass(eq=False)
class _Request(Generic[ResultT]):
    """A request's future and its results so far."""

    done: asyncio.Future[list[ResultT]]
    results: list[ResultT | None]
    num_missing: int


class _Row(NamedTuple, Generic[RowT, ResultT]):
    """One row of a request, and its position."""

    value: RowT
    request: _Request[ResultT]
    position: int


class DynamicBatcher(Generic[RowT, ResultT]):
    """A batcher that calls `run(rows, max_cost) -> PassResult` on `executor`, one call at a time.

    The rows that a call is offered are the next ones of a `FairQueue`: those of the client that has
    been served least come first. A call answers the first row and those that it chooses to run with
    it, in one pass of at most `max_cost`, so that a request that arrives waits for one pass and not
    for all requests of another client. While several clients share the model, the part of each in a
    pass is limited.

    If the model is idle, a request starts immediately. Requests that arrive during a call share the
    next one. Clients that send one request after another would then form two groups, each with half
    of the requests, and the calls would alternate between them. To prevent this, a call waits up to
    `linger_s` for the next requests of the clients that the previous call answered. Use the batcher
    in one event loop.

    Ray's `serve.batch` is not used: it collects its next batch before the model is idle, rejects
    items that are larger than a batch, and serves its queue in order of arrival.
    """

    def __init__(
        self,
        run: Callable[[list[RowT], int], PassResult[ResultT]],
        *,
        executor: Executor,
        window: Window,
        full_rows: int,
        linger_s: float,
    ) -> None:
        """Create a batcher that does not linger if `full_rows` are waiting."""
        self._run = run
        self._executor = executor
        self._window = window
        self._full_rows = full_rows
        self._linger_s = linger_s
        self._queue: FairQueue[_Row[RowT, ResultT]] = FairQueue()
        self._requests: set[_Request[ResultT]] = set()
        self._task: asyncio.Task[None] | None = None
        self._gathered = asyncio.Event()
        self._num_expected = 0
        self._ended_at = float("-inf")

    async def submit(self, rows: Sequence[tuple[RowT, float]], *, client: str) -> list[ResultT]:
        """Return the results of the rows, given with their estimated costs, in order.

        Errors of `run` are raised. The rows of a cancelled call leave the queue.
        """
        if not rows:
            return []
        request = _Request[ResultT](
            asyncio.get_running_loop().create_future(), [None] * len(rows), len(rows)
        )
        entries = self._queue.add(
            client,
            [(_Row(value, request, position), cost) for position, (value, cost) in enumerate(rows)],
        )
        self._requests.add(request)
        if self._is_gathered():
            self._gathered.set()
        if self._task is None:
            self._task = asyncio.create_task(self._drain())
        try:
            return await request.done
        finally:
            self._requests.discard(request)
            if request.num_missing:  # cancelled or failed
                self._queue.discard(entries)

    def idle_s(self) -> float:
        """Return the number of seconds since the last call ended, or 0 during a call."""
        if self._task is not None:
            return 0.0
        return asyncio.get_running_loop().time() - self._ended_at

    def _offered(self) -> list[Entry[_Row[RowT, ResultT]]]:
        """Return the rows for the next call."""
        if self._queue.is_shared:
            share: float = self._window.client_cost
        else:
            share = math.inf
        return self._queue.upcoming(
            max_items=self._window.rows, max_cost=self._window.cost, max_client_cost=share
        )

    def _max_cost(self, entries: Sequence[Entry[_Row[RowT, ResultT]]]) -> int:
        """Return the maximum cost of the call: the shares of its clients, because estimates of
        costs may be too low."""
        if not self._queue.is_shared:
            return self._window.pass_cost
        num_clients = len({entry.client for entry in entries})
        return min(self._window.pass_cost, self._window.client_cost * num_clients)

    async def _drain(self) -> None:
        try:
            while True:
                await self._linger()
                entries = self._offered()
                if not entries:
                    return
                num_answered = await self._call(entries)
                self._num_expected = len(self._requests) + num_answered
                self._ended_at = asyncio.get_running_loop().time()
        finally:
            self._task = None

    async def _call(self, entries: Sequence[Entry[_Row[RowT, ResultT]]]) -> int:
        """Run a call for the entries, and return the number of requests that are complete."""
        call = partial(self._run, [entry.item.value for entry in entries], self._max_cost(entries))
        try:
            done = await asyncio.get_running_loop().run_in_executor(self._executor, call)
            assert 0 in done.results, "the first row has no result"
        except Exception as error:
            return await self._fail(entries, error)
        return self._distribute(entries, done)

    async def _fail(self, entries: Sequence[Entry[_Row[RowT, ResultT]]], error: Exception) -> int:
        """Fail the request of the entries. If there are several, try each alone: only one of them
        may be at fault."""
        requests = dict.fromkeys(entry.item.request for entry in entries)
        if len(requests) > 1:
            num_complete = 0
            for request in requests:
                if request in self._requests:
                    num_complete += await self._call(
                        [entry for entry in entries if entry.item.request is request]
                    )
            return num_complete
        (request,) = requests
        # At their estimated costs: the call took time, although it failed.
        self._queue.serve(entries)
        self._requests.discard(request)
        if not request.done.done():
            request.done.set_exception(error)
        return 0

    def _distribute(
        self, entries: Sequence[Entry[_Row[RowT, ResultT]]], done: PassResult[ResultT]
    ) -> int:
        """Store the results and charge their costs to the clients. Return the number of requests
        that are complete."""
        for entry, cost in zip(entries, done.costs, strict=True):
            entry.cost = cost
        self._queue.serve([entries[position] for position in sorted(done.results)])
        num_complete = 0
        for position, result in done.results.items():
            _, request, index = entries[position].item
            request.results[index] = result
            request.num_missing -= 1
            if request.num_missing == 0:
                self._requests.discard(request)
                num_complete += 1
                if not request.done.done():
                    request.done.set_result(request.results)  # type: ignore[arg-type]  # none is missing
        return num_complete

    async def _linger(self) -> None:
        loop = asyncio.get_running_loop()
        if self._is_gathered() or self._ended_at + self._linger_s <= loop.time():
            return
        self._gathered.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(self._ended_at + self._linger_s):
                await self._gathered.wait()

    def _is_gathered(self) -> bool:
        return (
            len(self._requests) >= self._num_expected or self._queue.num_waiting >= self._full_rows
        )
