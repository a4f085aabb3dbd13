"""Tests of the routing rule of a hybrid."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@pytest.mark.parametrize(
    "fields",
    [
        {"by": "group"},
        {"by": "group", "column": "sex"},
        {"by": "group", "column": "sex", "values": ("f", NO_GROUP)},
        {"by": "cascade"},
        {"by": "cascade", "threshold": 1.5},
        {"by": "cascade", "threshold": -0.1},
        {"by": "cascade", "threshold": float("nan")},
    ],
)
def test_an_incomplete_rule_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is not a rule"):
        Routing(**fields)
