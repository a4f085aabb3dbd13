"""How much of a replica one client may hold."""

from collections import Counter
from contextlib import ExitStack, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import limits
from serving.http.schemas import RequestError
from serving.limits import Admission, Budget, Client, admit, client_name, network_of

MAX_BYTES = 100_000
LIMITS = {"requests": 12, "texts": 100, "tokens": 1000}


def hold(admission: Admission, client: str, **amounts: int) -> ExitStack:
    """Add amounts to what the client holds, and return the stack that releases them."""
    releases = ExitStack()
    limits._Request(client, admission.budgets, releases).hold(**amounts)
    return releases


def test_clients_that_fill_their_parts_leave_a_reserve_for_clients_that_hold_nothing() -> None:
    admission = Admission(requests=1024)
    for client in range(30):
        with suppress(RequestError):
            for _ in range(1024):
                hold(admission, f"greedy {client}", requests=1)
    for client in range(10):
        hold(admission, f"new {client}", requests=1)
        with pytest.raises(RequestError):
            hold(admission, f"new {client}", requests=1)


def test_an_idle_replica_accepts_a_request_larger_than_its_limits_and_keeps_room_for_others() -> (
    None
):
    admission = Admission(**LIMITS)
    releases = hold(admission, "a", texts=256, tokens=10**6)
    with pytest.raises(RequestError):
        hold(admission, "a", texts=256, tokens=10**6)
    hold(admission, "b", texts=10, tokens=100)
    releases.close()
    hold(admission, "a", texts=40, tokens=100)


def test_a_request_releases_all_that_it_held_at_its_end() -> None:
    admission = Admission(**LIMITS)

    def held() -> list[dict[str | None, int]]:
        return [dict(budget.held) for budget in admission.budgets.values()]

    with admission.request("a"):
        assert client_name() == "a"
        admit(texts=30, tokens=300)
        with pytest.raises(RequestError), admission.request("a"):
            admit(texts=30, tokens=300)
        assert held() == [{"a": 1}, {"a": 30}, {"a": 300}]
    assert held() == [{}, {}, {}]
    assert client_name() == ""
    admit(texts=10**9, tokens=10**9)  # outside of a request there is no limit


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.1:4711", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("[2001:db8:0:0:9::2]:4711", "2001:db8::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("unknown", "unknown"),
        ("", ""),
    ],
)
def test_a_client_without_a_key_is_its_network(address: str, network: str) -> None:
    assert network_of(address) == network


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5_000)), max_size=200))
def test_the_total_is_bounded_and_a_row_is_refused_only_for_its_callers_bytes(
    rows: list[tuple[int, int]],
) -> None:
    budget = Budget(MAX_BYTES)
    held = Counter[Client]()
    for number, num_bytes in rows:
        caller = str(number)
        free = MAX_BYTES - held.total() - num_bytes
        fits = held[caller] + num_bytes <= free
        assert budget.take(caller, num_bytes) == fits
        held[caller] += num_bytes * fits
        assert held.total() < MAX_BYTES
