import pytest

from cluster.resources import NodeType, Room, node_types_of, workers_of_types, workers_that_fit


@pytest.mark.parametrize(
    ("room", "worker", "fits"),
    [
        (Room(4), Room(2), 2),
        (Room(3), Room(2), 1),
        (Room(0.3), Room(0.1), 3),
        (Room(8, 1), Room(2, 1), 1),
        (Room(8), Room(2, 1), 0),
    ],
)
def test_workers_that_a_node_holds_are_bounded_by_its_scarcest_resource(room: Room, worker: Room, fits: int) -> None:
    assert room.holds(worker) == fits


def test_halves_of_two_nodes_hold_no_worker() -> None:
    assert workers_that_fit([Room(2), Room(2)], Room(3)) == 0
    assert workers_that_fit([Room(5), Room(3)], Room(2)) == 3


def test_node_types_hold_workers_up_to_their_bound() -> None:
    types = [NodeType("small", Room(2), 3), NodeType("gpu", Room(8, 1), 1)]
    assert workers_of_types(types, Room(2)) == 3 + 4
    assert workers_of_types(types, Room(1, 1)) == 1
    assert workers_of_types([NodeType("any", Room(2), None)], Room(2)) > 100


def test_node_types_together_hold_no_more_than_the_cluster_may_have() -> None:
    content = {
        "max_workers": 10,
        "available_node_types": {
            "serving": {"resources": {"CPU": 8}, "max_workers": 4},
            "training": {"resources": {"CPU": 8}, "max_workers": 8},
        },
    }
    assert workers_of_types(node_types_of(content), Room(8)) == 10
    content["available_node_types"]["training"]["resources"] = {"CPU": 16}  # type: ignore[index]
    assert workers_of_types(node_types_of(content), Room(8)) == 8 * 2 + 2  # the large ones first
    assert workers_of_types(node_types_of(content), Room(16)) == 8
    assert workers_of_types((), Room(1)) == 0


def test_the_file_of_ray_up_tells_node_types() -> None:
    content = {
        "max_workers": 5,
        "available_node_types": {
            "head": {"resources": {"CPU": 2}, "max_workers": 0},
            "worker": {"resources": {"CPU": 8, "GPU": 1}, "max_workers": 9},
            "found by the cloud": {"max_workers": 3},
        },
    }
    assert node_types_of(content) == (NodeType("head", Room(2), 0, 5), NodeType("worker", Room(8, 1), 5, 5))
    assert node_types_of(None) == ()
    assert node_types_of({"max_workers": 3}) == ()
