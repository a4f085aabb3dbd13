"""A queue that is fair between clients, however much each of them sends."""

import heapq
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

RECENT_TURNS = 32
"""A client counts as recent for this number of turns after its last one."""

ItemT = TypeVar("ItemT")


@dataclass(eq=False, slots=True)
class Entry(Generic[ItemT]):
    """An item in the queue."""

    client: str
    item: ItemT
    cost: float


@dataclass(eq=False, slots=True)
class _Client(Generic[ItemT]):
    number: int  # order of the clients' first items, for equal tags
    tag: float  # virtual time at which the client's next item may start
    served_at: int  # number of the client's last turn
    waiting: dict[Entry[ItemT], None] = field(default_factory=dict)  # an ordered set


class FairQueue(Generic[ItemT]):
    """Items of several clients, by start-time fair queueing (Goyal, Vin and Cheng, 1996).

    The next item is that of the client with the lowest tag: the sum of the costs for which it was served. Items of one
    client keep their order. A client that returns continues at the queue's virtual time, which is the tag of the item
    served last, so it waits for at most one turn of each other client and gains nothing from its idle time.
    """

    def __init__(self) -> None:
        self._clients: dict[str, _Client[ItemT]] = {}
        self._virtual_time = 0.0
        self._turn = 0
        self._num_clients_seen = 0
        self.num_waiting = 0
        self.cost = 0.0
        """Cost of all waiting items."""

    @property
    def is_shared(self) -> bool:
        """True if more than one client is waiting or was served recently."""
        return len(self._clients) > 1

    def add(self, client: str, items: Iterable[tuple[ItemT, float]]) -> list[Entry[ItemT]]:
        """Add items with their costs at the end of the client's items, and return their entries."""
        account = self._clients.get(client)
        if account is None:
            self._num_clients_seen += 1
            account = _Client(self._num_clients_seen, self._virtual_time, self._turn)
            self._clients[client] = account
        if not account.waiting:
            account.tag = max(account.tag, self._virtual_time)
        entries = [Entry(client, item, cost) for item, cost in items]
        account.waiting.update(dict.fromkeys(entries))
        self.num_waiting += len(entries)
        self.cost += sum(entry.cost for entry in entries)
        return entries

    def upcoming(self, *, max_items: int, max_cost: float, max_client_cost: float = float("inf")) -> list[Entry[ItemT]]:
        """Return the next items in the order in which they would be served, at least one if any is waiting.

        The items of one client cost at most `max_client_cost` in total, unless its first item alone costs more.
        """
        heap = [(account.tag, account.number, 0.0, iter(account.waiting)) for account in self._clients.values()]
        heapq.heapify(heap)
        entries: list[Entry[ItemT]] = []
        cost = 0.0
        while heap and len(entries) < max_items:
            tag, number, of_client, waiting = heap[0]
            entry = next(waiting, None)
            if entry is None or (of_client and of_client + entry.cost > max_client_cost):
                heapq.heappop(heap)
                continue
            cost += entry.cost
            if entries and cost > max_cost:
                break
            entries.append(entry)
            heapq.heapreplace(heap, (tag + entry.cost, number, of_client + entry.cost, waiting))
        return entries

    def first(self, *, allowed: Callable[[str], bool]) -> Entry[ItemT] | None:
        """Return the next item of the clients for which `allowed` returns True; None if there is none."""
        accounts = [account for client, account in self._clients.items() if account.waiting and allowed(client)]
        return (
            next(iter(min(accounts, key=lambda account: (account.tag, account.number)).waiting)) if accounts else None
        )

    def recost(self, entry: Entry[ItemT], cost: float) -> None:
        """Replace the cost of an item that is waiting, or that was discarded after its turn began."""
        if entry in self._clients[entry.client].waiting:
            self.cost += cost - entry.cost
        entry.cost = cost

    def serve(self, entries: Sequence[Entry[ItemT]]) -> None:
        """Remove the items of a turn, the next one first, and charge their costs to their clients.

        Items that were discarded after their turn began are charged too: they were served, although nobody waits.
        """
        self._turn += 1
        self._virtual_time = max(self._virtual_time, self._clients[entries[0].client].tag)
        for entry in entries:
            account = self._clients[entry.client]
            account.tag += entry.cost
            account.served_at = self._turn
            if entry in account.waiting:
                self._remove(account, entry)
        self._forget()

    def discard(self, entries: Iterable[Entry[ItemT]]) -> None:
        """Remove the items that are still waiting, at no cost to their clients."""
        for entry in entries:
            account = self._clients.get(entry.client)
            if account is not None and entry in account.waiting:
                self._remove(account, entry)

    def _remove(self, account: _Client[ItemT], entry: Entry[ItemT]) -> None:
        del account.waiting[entry]
        self.num_waiting -= 1
        self.cost = self.cost - entry.cost if self.num_waiting else 0.0  # 0 exactly, despite rounding

    def _forget(self) -> None:
        oldest = self._turn - RECENT_TURNS
        for client in [
            client for client, account in self._clients.items() if not account.waiting and account.served_at < oldest
        ]:
            del self._clients[client]
