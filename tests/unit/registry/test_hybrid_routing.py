"""Tests of the routing rule of a hybrid."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tailorbird.data import rows as read
from tailorbird.registry.hybrid_routing import NO_GROUP, Routing, routes_to_second

GROUP = Routing(by="group", column="sex", values=("f", "x"))
CASCADE = Routing(by="cascade", threshold=0.7)
values = st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["f", "x", "m", NO_GROUP]))
probabilities = st.floats(0, 1)


@given(st.lists(values))
def test_by_group_the_second_part_answers_the_rows_with_its_values(
    groups: list[str | None],
) -> None:
    routed = routes_to_second(GROUP, groups=groups)
    assert routed.dtype == np.bool_
    second, first = np.flatnonzero(routed).tolist(), np.flatnonzero(~routed).tolist()
    assert sorted(second + first) == list(range(len(groups)))
    assert {groups[row] for row in second} <= {"f", "x"}
    assert {groups[row] for row in first}.isdisjoint({"f", "x"})


@given(st.lists(probabilities), probabilities)
def test_in_a_cascade_the_first_part_answers_the_rows_at_or_above_the_threshold(
    confidences: list[float], threshold: float
) -> None:
    routed = routes_to_second(Routing(by="cascade", threshold=threshold), confidences=confidences)
    second, first = np.flatnonzero(routed).tolist(), np.flatnonzero(~routed).tolist()
    assert sorted(second + first) == list(range(len(confidences)))
    assert all(confidences[row] < threshold for row in second)
    assert all(confidences[row] >= threshold for row in first)


@given(st.floats(0.0, 1.0, width=32))
def test_the_first_part_answers_a_row_on_the_threshold_for_any_dtype(confidence: float) -> None:
    routing = Routing(by="cascade", threshold=confidence)
    assert not routes_to_second(routing, confidences=[confidence]).any()
    just_above = Routing(by="cascade", threshold=min(float(np.nextafter(confidence, 2.0)), 1.0))
    for dtype in (np.float32, np.float64):
        column = np.array([confidence], dtype)
        assert not routes_to_second(routing, confidences=column).any()
        assert routes_to_second(just_above, confidences=column).all() == (confidence < 1.0)


@given(st.lists(st.floats(0, 1, exclude_max=True)))
def test_the_thresholds_0_and_1_give_the_answers_of_one_part(confidences: list[float]) -> None:
    never, always = (Routing(by="cascade", threshold=threshold) for threshold in (0.0, 1.0))
    assert not routes_to_second(never, confidences=confidences).any()
    assert routes_to_second(always, confidences=confidences).all()


def test_the_first_part_answers_rows_without_a_group() -> None:
    assert routes_to_second(GROUP, groups=[None, NO_GROUP, "", "f"]).tolist() == [
        False,
        False,
        False,
        True,
    ]
    assert read.NO_GROUP == NO_GROUP


def test_the_second_part_answers_a_row_with_a_nan_confidence() -> None:
    assert routes_to_second(CASCADE, confidences=[float("nan"), 0.9]).tolist() == [True, False]


def test_the_inputs_of_the_rule_are_required_and_others_are_ignored() -> None:
    with pytest.raises(ValueError, match="needs the values of 'sex'; give them as `groups`"):
        routes_to_second(GROUP, confidences=[0.5])
    with pytest.raises(ValueError, match="give them as `confidences`"):
        routes_to_second(CASCADE, groups=["f"])
    assert routes_to_second(CASCADE, groups=["f"], confidences=[0.9]).tolist() == [False]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"by": "group"}, "needs a column and values"),
        ({"by": "group", "column": "sex"}, "needs a column and values"),
        ({"by": "group", "column": "sex", "values": ("f",), "threshold": 0.5}, "is not a rule"),
        (
            {"by": "group", "column": "sex", "values": ("f", NO_GROUP)},
            "the first part answers rows without a group",
        ),
        ({"by": "cascade"}, "is not a rule"),
        ({"by": "cascade", "threshold": 0.5, "values": ("f",)}, "is not a rule"),
        ({"by": "cascade", "threshold": 1.5}, "is not a rule"),
        ({"by": "cascade", "threshold": float("nan")}, "is not a rule"),
        ({"by": "chance"}, "is not a rule"),
    ],
)
def test_a_rule_with_missing_or_extra_fields_is_refused(
    fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Routing(**fields)


@pytest.mark.parametrize("routing", [GROUP, CASCADE, Routing(by="cascade", threshold=0.1 + 0.2)])
def test_a_rule_survives_a_json_round_trip(routing: Routing) -> None:
    adapter = TypeAdapter(Routing)
    assert adapter.validate_json(adapter.dump_json(routing)) == routing
