"""The order in which a fair queue serves its clients."""

from hypothesis import given
from hypothesis import strategies as st

from serving.limits import RECENT_TURNS, Entry, FairQueue

Queue = FairQueue[str]


def served(queue: Queue, *, turns: int = 1000) -> list[str]:
    """Serve one item per turn, and return the items."""
    items: list[str] = []
    while queue.num_waiting and len(items) < turns:
        (entry,) = queue.upcoming(max_items=1, max_cost=0)
        queue.serve([entry])
        items.append(entry.item)
    return items


def add(queue: Queue, client: str, count: int, *, cost: float = 1) -> list[Entry[str]]:
    return queue.add(client, [(f"{client}{number}", cost) for number in range(count)])


def test_idle_time_gives_no_credit() -> None:
    queue = Queue()
    add(queue, "b", 1)
    served(queue)
    add(queue, "a", 50)
    served(queue, turns=20)
    add(queue, "b", 20)
    first = served(queue, turns=10)
    assert sum(item.startswith("b") for item in first) in (5, 6)


def test_the_upcoming_items_are_those_that_would_be_served_and_stay_within_the_limits() -> None:
    queue = Queue()
    add(queue, "a", 3, cost=2)
    add(queue, "b", 3, cost=3)
    items = [entry.item for entry in queue.upcoming(max_items=10, max_cost=100)]
    assert [entry.item for entry in queue.upcoming(max_items=2, max_cost=100)] == items[:2]
    assert [entry.item for entry in queue.upcoming(max_items=10, max_cost=5)] == items[:2]
    assert [entry.item for entry in queue.upcoming(max_items=10, max_cost=0)] == items[:1]
    assert served(queue) == items
    assert queue.upcoming(max_items=10, max_cost=100) == []


def test_the_upcoming_items_of_one_client_stay_within_its_share() -> None:
    queue = Queue()
    add(queue, "a", 9, cost=2)
    add(queue, "b", 1, cost=1)
    add(queue, "c", 9, cost=20)
    entries = queue.upcoming(max_items=100, max_cost=100, max_client_cost=5)
    assert sorted(entry.item for entry in entries) == ["a0", "a1", "b0", "c0"]


def test_a_discarded_item_costs_nothing_unless_its_turn_has_begun() -> None:
    queue = Queue()
    entries = add(queue, "a", 10, cost=5)
    queue.discard(entries[1:])
    add(queue, "b", 2)
    assert served(queue, turns=2) == ["a0", "b0"]
    queue = Queue()
    begun = add(queue, "a", 1, cost=5)
    queue.discard(begun)
    begun[0].cost = 50
    queue.serve(begun)
    assert queue.num_waiting == 0
    add(queue, "b", 20)
    add(queue, "a", 20)
    assert sum(item.startswith("b") for item in served(queue, turns=20)) == 20


def test_the_queue_is_shared_while_another_client_was_served_recently() -> None:
    queue = Queue()
    add(queue, "a", 2 * RECENT_TURNS)
    add(queue, "b", 1)
    served(queue, turns=RECENT_TURNS)
    assert queue.is_shared
    served(queue, turns=5)
    assert not queue.is_shared


@given(
    st.lists(st.integers(1, 9), min_size=20, max_size=60),
    st.lists(st.integers(1, 9), min_size=20, max_size=60),
)
def test_two_clients_with_full_queues_get_the_same_share(
    costs_a: list[int], costs_b: list[int]
) -> None:
    queue: FairQueue[int] = FairQueue()
    queue.add("a", [(cost, cost) for cost in costs_a])
    queue.add("b", [(cost, cost) for cost in costs_b])
    total = {"a": 0, "b": 0}
    for _ in range(20):
        (entry,) = queue.upcoming(max_items=1, max_cost=0)
        queue.serve([entry])
        total[entry.client] += entry.item
        assert abs(total["a"] - total["b"]) <= 9
