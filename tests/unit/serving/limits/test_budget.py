"""However many keys fill the budget, a key with few bytes can add more."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serving.limits import Budget, Client

MAX_BYTES = 100_000


def fill(budget: Budget, caller: Client, *, num_bytes: int = 100) -> int:
    """Add rows until one is refused; return the size of all."""
    total = 0
    while budget.take(caller, num_bytes):
        total += num_bytes
    return total


def test_one_caller_gets_half_and_each_further_one_half_of_the_rest() -> None:
    budget = Budget(MAX_BYTES)
    assert [fill(budget, str(number)) for number in range(4)] == [50_000, 25_000, 12_500, 6_200]
    assert not budget.take(None, 4_000)
    assert budget.take(None, 3_000)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5_000)), max_size=200))
def test_the_total_is_bounded_and_a_row_is_refused_only_for_its_callers_bytes(
    rows: list[tuple[int, int]],
) -> None:
    budget, held = Budget(MAX_BYTES), Counter[Client]()
    for number, num_bytes in rows:
        caller = str(number)
        free = MAX_BYTES - held.total() - num_bytes
        fits = held[caller] + num_bytes <= free
        assert budget.take(caller, num_bytes) == fits
        held[caller] += num_bytes * fits
        assert held.total() < MAX_BYTES
