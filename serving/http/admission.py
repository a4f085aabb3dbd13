"""Admission of requests: how much one client may hold of a replica's queue."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Network, ip_address
from typing import NamedTuple

from serving.http.schemas import RequestError
from serving.served_tasks import RETRY_AFTER_S

RESERVED_PART = 16  # one part in 16 of each limit is reserved for clients that hold nothing


class Amounts(NamedTuple):
    """Amounts of work in a replica: limits, or what requests in progress hold."""

    requests: int = 0
    texts: int = 0
    tokens: int = 0
    """Estimated, for texts that are not tokenized yet."""

    def plus(self, other: "Amounts") -> "Amounts":
        return Amounts(*(mine + more for mine, more in zip(self, other, strict=True)))

    def minus(self, other: "Amounts") -> "Amounts":
        return Amounts(*(mine - less for mine, less in zip(self, other, strict=True)))


def exceeded(limits: Amounts, *, held: Amounts, total: Amounts, more: Amounts) -> str | None:
    """Return the name of the first amount that a client may not add; None if it may add all.

    After the addition, a client may hold at most as much as is left for others. One client can therefore hold about
    half of a limit, and each further client half of the rest. A part of each limit is reserved for clients that hold
    nothing, so that a dozen clients that fill their parts do not keep out others. `held` is what the client holds, and
    `total` what all clients hold.
    """
    for name, limit, mine, all_clients, added in zip(Amounts._fields, limits, held, total, more, strict=True):
        usable = limit - limit // RESERVED_PART if mine else limit
        if added and mine + added > usable - all_clients - added:
            return name
    return None


class Admission:
    """The amounts that the requests in progress hold, by client. Use it in one event loop."""

    def __init__(self, limits: Amounts) -> None:
        self._limits = limits
        self._total = Amounts()
        self._by_client: dict[str, Amounts] = {}

    def add(self, client: str, more: Amounts) -> Amounts:
        """Add amounts to a client and return those to release later. Raise RequestError 429 if it may not hold them.

        A request that is larger than half of a limit counts as half, so that an idle replica accepts it.
        """
        more = Amounts(*(min(added, limit // 2) for added, limit in zip(more, self._limits, strict=True)))
        held = self._by_client.get(client, Amounts())
        name = exceeded(self._limits, held=held, total=self._total, more=more)
        if name is not None:
            message = (
                f"this client already has {getattr(held, name)} {name} in progress, and the replica accepts no more "
                f"from it at this load; retry in {RETRY_AFTER_S} s"
            )
            headers = {"retry-after": str(RETRY_AFTER_S)}
            raise RequestError(429, "too_many_requests", message, code="rate_limit_exceeded", headers=headers)
        self._by_client[client] = held.plus(more)
        self._total = self._total.plus(more)
        return more

    def release(self, client: str, amounts: Amounts) -> None:
        """Remove amounts that were added before."""
        self._total = self._total.minus(amounts)
        left = self._by_client[client].minus(amounts)
        if any(left):
            self._by_client[client] = left
        else:
            del self._by_client[client]

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """Hold one request, and what `admit` adds to it, during the block. Raise RequestError 429 if it is refused."""
        held = _Held(self, client, self.add(client, Amounts(requests=1)))
        token = _held.set(held)
        try:
            yield
        finally:
            _held.reset(token)
            self.release(client, held.amounts)


@dataclass
class _Held:
    """What the current request holds."""

    admission: Admission
    client: str
    amounts: Amounts


_held: ContextVar[_Held | None] = ContextVar("held", default=None)


def network_of(address: str) -> str:
    """Return the network of an address, which identifies a client without a key; a port is removed.

    For IPv6, it is the network of 64 bits, all addresses of which one client can use. For IPv4, it is the address.
    """
    host = address.rpartition(":")[0] if address.count(":") == 1 else address.removeprefix("[").partition("]")[0]
    try:
        parsed = ip_address(host or address)
    except ValueError:
        return address
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    return str(parsed.ipv4_mapped or IPv6Network((parsed, 64), strict=False))


def client_name() -> str:
    """Return the name by which queues are fair: that of the API key or, without keys, the client's network."""
    held = _held.get()
    return "" if held is None else held.client


def admit(*, texts: int = 0, tokens: int) -> None:
    """Add texts and tokens to what the current request holds until its response is complete.

    Raises RequestError 429 if its client may not hold them.
    """
    held = _held.get()
    if held is not None:
        held.amounts = held.amounts.plus(held.admission.add(held.client, Amounts(texts=texts, tokens=tokens)))
