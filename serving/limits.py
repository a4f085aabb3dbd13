"""What one client may use of a replica: its turns, its share of what is bounded, and its rate.

A client is the name of an API key or, without keys, a network. `FairQueue` decides whose work is
next. `Budget` bounds what is held at the same time: slots, places in the queue, and bytes of
buffers. `RateLimiter` bounds the use in a minute.
"""

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Network, ip_address
from itertools import islice
from operator import itemgetter
from typing import Generic, TypeVar

from serving.http.api_keys import ApiKey
from serving.http.schemas import RequestError
from serving.served_tasks import RETRY_AFTER_S

RECENT_TURNS = 32
"""A client counts as recent for this number of turns after its last one."""
# a client holds at most this many times the slots that are left: three quarters, if it is alone
SLOTS_RATIO = 3
RESERVED_PART = 16  # one part in 16 of a replica's queue is reserved for clients that hold nothing

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
Client = str | None  # None for all requests of a service without keys


@dataclass(eq=False, slots=True)
class Entry(Generic[ItemT]):
    """An item in the queue."""

    client: str
    item: ItemT
    cost: float


@dataclass(eq=False, slots=True)
class _Account(Generic[ItemT]):
    tag: float  # virtual time at which the client's next item may start
    served_at: int  # number of the client's last turn
    waiting: dict[Entry[ItemT], None] = field(default_factory=dict)  # an ordered set


def _turns(
    account: _Account[ItemT], max_client_cost: float
) -> Iterator[tuple[float, Entry[ItemT]]]:
    """Yield a client's items with their tags, up to a total cost."""
    tag = account.tag
    for entry in account.waiting:
        end = tag + entry.cost
        if tag > account.tag and end - account.tag > max_client_cost:
            return
        yield tag, entry
        tag = end


class FairQueue(Generic[ItemT]):
    """Items of several clients, by start-time fair queueing (Goyal, Vin and Cheng, 1996).

    The next item is that of the client with the lowest tag: the sum of the costs for which it was
    served. Items of one client keep their order. A client that returns continues at the queue's
    virtual time, which is the tag of the item served last, so it waits for at most one turn of each
    other client and gains nothing from its idle time.
    """

    def __init__(self) -> None:
        self._accounts: dict[str, _Account[ItemT]] = {}
        self._virtual_time = 0.0
        self._turn = 0

    @property
    def num_waiting(self) -> int:
        """Return the number of items in the queue."""
        return sum(len(account.waiting) for account in self._accounts.values())

    @property
    def is_shared(self) -> bool:
        """Return True if more than one client is waiting or was served recently."""
        return len(self._accounts) > 1

    def add(self, client: str, items: Iterable[tuple[ItemT, float]]) -> list[Entry[ItemT]]:
        """Add items with their costs at the end of the client's items, and return their entries."""
        account = self._accounts.setdefault(client, _Account(self._virtual_time, self._turn))
        if not account.waiting:
            account.tag = max(account.tag, self._virtual_time)
        entries = [Entry(client, item, cost) for item, cost in items]
        account.waiting.update(dict.fromkeys(entries))
        return entries

    def upcoming(
        self, *, max_items: int, max_cost: float, max_client_cost: float = float("inf")
    ) -> list[Entry[ItemT]]:
        """Return the next items in the order in which they would be served, at least one if any is
        waiting.

        The items of one client cost at most `max_client_cost` in total, unless its first item alone
        costs more.
        """
        accounts = self._accounts.values()
        turns = heapq.merge(
            *(_turns(account, max_client_cost) for account in accounts), key=itemgetter(0)
        )
        entries: list[Entry[ItemT]] = []
        cost = 0.0
        for _, entry in islice(turns, max_items):
            cost += entry.cost
            if entries and cost > max_cost:
                break
            entries.append(entry)
        return entries

    def first(self, *, allowed: Callable[[str], bool]) -> Entry[ItemT] | None:
        """Return the next item of the clients for which `allowed` returns True; None if there is
        none."""
        accounts = [
            account
            for client, account in self._accounts.items()
            if account.waiting and allowed(client)
        ]
        account = min(accounts, key=lambda account: account.tag, default=None)
        if account is None:
            return None
        return next(iter(account.waiting))

    def serve(self, entries: Sequence[Entry[ItemT]]) -> None:
        """Remove the items of a turn, the next one first, and charge their costs to their clients.

        Items that were discarded after their turn began are charged too: they were served, although
        nobody waits.
        """
        self._turn += 1
        self._virtual_time = max(self._virtual_time, self._accounts[entries[0].client].tag)
        for entry in entries:
            account = self._accounts[entry.client]
            account.tag += entry.cost
            account.served_at = self._turn
            account.waiting.pop(entry, None)
        oldest = self._turn - RECENT_TURNS
        self._accounts = {
            client: account
            for client, account in self._accounts.items()
            if account.waiting or account.served_at >= oldest
        }

    def discard(self, entries: Iterable[Entry[ItemT]]) -> None:
        """Remove the items that are still waiting, at no cost to their clients."""
        for entry in entries:
            account = self._accounts.get(entry.client)
            if account is not None:
                account.waiting.pop(entry, None)


class Budget:
    """A limit on what all clients hold, of which a client holds at most `ratio` times what is left
    for the others.

    With the ratio 1, one client alone can hold half of the limit, and each further client half of
    the rest. The reserve is left for clients that hold nothing, so that many clients that fill
    their parts do not keep out others.
    """

    def __init__(self, limit: int, *, ratio: int = 1, reserve: int = 0) -> None:
        self.limit = limit
        self.held = Counter[Client]()
        """What each client holds."""
        self._left = limit
        self._ratio = ratio
        self._reserve = reserve

    def allows(self, client: Client, amount: int) -> bool:
        """Return True if the client may hold this amount in addition."""
        held = self.held[client]
        left = self._left - amount
        if held:
            left -= self._reserve
        return held + amount <= self._ratio * left

    def take(self, client: Client, amount: int) -> bool:
        """Add the amount to what the client holds and return True, or return False if it may not
        hold it."""
        is_allowed = self.allows(client, amount)
        if is_allowed:
            self._left -= amount
            self.held[client] += amount
        return is_allowed

    def release(self, client: Client, amount: int) -> None:
        """Remove an amount that was taken before."""
        self._left += amount
        self.held[client] -= amount
        if not self.held[client]:
            del self.held[client]


def max_held_alone(num_slots: int) -> int:
    """Return the number of slots that a client can hold if no other client holds one."""
    return max(1, SLOTS_RATIO * num_slots // (SLOTS_RATIO + 1))


class FairSlots:
    """Slots for work that runs at the same time, for which clients wait in a `FairQueue`. Use it in
    one event loop.

    Running work cannot be stopped for other clients, so some slots stay free for a client that has
    none.
    """

    def __init__(self, num_slots: int) -> None:
        # A client that holds no slot may take the last one; the additional slot is never taken.
        self.budget = Budget(num_slots + 1, ratio=SLOTS_RATIO, reserve=1)
        self._queue: FairQueue[asyncio.Future[None]] = FairQueue()

    async def acquire(self, client: str, *, cost: float) -> None:
        """Wait for a slot, which the caller must release. A cancelled call leaves the queue."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entries = self._queue.add(client, [(turn, cost)])
        self._start()
        try:
            await turn
        except BaseException:
            self._queue.discard(entries)
            # the slot was given before the call was cancelled
            if turn.done() and not turn.cancelled():
                self.release(client)
            raise

    def release(self, client: str) -> None:
        """Give a client's slot to the next client."""
        self.budget.release(client, 1)
        self._start()

    @asynccontextmanager
    async def held(self, client: str, *, cost: float) -> AsyncIterator[None]:
        """Wait for a slot, and hold it during the block."""
        await self.acquire(client, cost=cost)
        try:
            yield
        finally:
            self.release(client)

    async def run(self, call: Callable[[], ResultT], *, client: str, cost: float) -> ResultT:
        """Return the result of a call in a thread.

        A cancelled caller does not wait for the thread, which holds its slot until it ends.
        """
        await self.acquire(client, cost=cost)
        work = asyncio.create_task(asyncio.to_thread(call))
        work.add_done_callback(lambda _done: self.release(client))
        return await asyncio.shield(work)

    def _start(self) -> None:
        """Give free slots to waiting clients."""
        while entry := self._queue.first(allowed=lambda client: self.budget.allows(client, 1)):
            if entry.item.done():  # cancelled
                self._queue.discard([entry])
                continue
            self._queue.serve([entry])
            self.budget.take(entry.client, 1)
            entry.item.set_result(None)


class RateLimiter:
    """Token buckets of one replica, one per key and limit. A bucket holds the limit of one minute,
    and refills evenly.

    A request is accepted while nothing that its key limits is used up. Texts and tokens are charged
    when they are known, so a request may use more than what is left. The key then waits until the
    rest is refilled.
    """

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._buckets: dict[tuple[str, str], tuple[float, float]] = {}

    def accept(self, key: ApiKey) -> None:
        """Charge a request; raise RequestError 429 if a limit of the key is used up."""
        for quantity, limit in key.options.limits.items():
            missing = 1 - self._level(key, quantity, limit)
            if missing > 0:
                message = f"the key {key.name} is limited to {limit} {quantity} a minute"
                raise _too_many(
                    "rate_limited", message, wait_s=max(1, round(missing * 60 / limit + 0.5))
                )
        self.charge(key, requests=1)

    def charge(self, key: ApiKey, **amounts: int) -> None:
        """Charge requests, texts or tokens."""
        for quantity, limit in key.options.limits.items():
            level = self._level(key, quantity, limit) - amounts.get(quantity, 0)
            self._buckets[key.sha256, quantity] = (level, self._now())

    def _level(self, key: ApiKey, quantity: str, limit: int) -> float:
        now = self._now()
        level, updated_at = self._buckets.get((key.sha256, quantity), (float(limit), now))
        return min(float(limit), level + (now - updated_at) * limit / 60)


class Admission:
    """What the requests in progress hold of a replica's queue, by client. Use it in one event
    loop."""

    def __init__(self, **limits: int) -> None:
        self.budgets = {
            name: Budget(limit, reserve=limit // RESERVED_PART) for name, limit in limits.items()
        }

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """Hold one request, and what `admit` adds to it, during the block. Raise RequestError 429
        if it is refused."""
        with ExitStack() as releases:
            request = _Request(client, self.budgets, releases)
            request.hold(requests=1)
            token = _request.set(request)
            releases.callback(_request.reset, token)
            yield


@dataclass(frozen=True)
class _Request:
    """A request in progress, which releases at its end what it holds."""

    client: str
    budgets: dict[str, Budget]
    releases: ExitStack

    def hold(self, **amounts: int) -> None:
        """Add amounts to what the request holds.

        An amount that is larger than half of its limit counts as half, so that an idle replica
        accepts it.
        """
        for name, amount in amounts.items():
            budget = self.budgets[name]
            counted = min(amount, budget.limit // 2)
            if counted and not budget.take(self.client, counted):
                message = (
                    f"this client already has {budget.held[self.client]} {name} in progress, and "
                    "the replica accepts no more from it at this load"
                )
                raise _too_many("too_many_requests", message, wait_s=RETRY_AFTER_S)
            self.releases.callback(budget.release, self.client, counted)


_request: ContextVar[_Request | None] = ContextVar("request", default=None)


def client_name() -> str:
    """Return the name by which queues are fair: that of the API key or, without keys, the client's
    network."""
    request = _request.get()
    if request is None:
        return ""
    return request.client


def admit(**amounts: int) -> None:
    """Add texts or tokens to what the current request holds until its response is complete.

    Tokens are estimated, for texts that are not tokenized yet. Raises RequestError 429 if the
    client may not hold them.
    """
    request = _request.get()
    if request is not None:
        request.hold(**amounts)


def network_of(address: str) -> str:
    """Return the network of an address, which identifies a client without a key; a port is removed.

    For IPv6, it is the network of 64 bits, all addresses of which one client can use. For IPv4, it
    is the address.
    """
    if address.count(":") == 1:
        host = address.rpartition(":")[0]
    else:
        host = address.removeprefix("[").partition("]")[0]
    try:
        parsed = ip_address(host or address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))


def _too_many(type: str, message: str, *, wait_s: int) -> RequestError:
    return RequestError(
        429,
        type,
        f"{message}; retry in {wait_s} s",
        code="rate_limit_exceeded",
        headers={"retry-after": str(wait_s)},
    )
