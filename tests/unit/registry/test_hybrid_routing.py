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
    routed = routes_to_second(GROUP, groups=[None, NO_GROUP, "m", "f", "x"])
    assert routed.tolist() == [False, False, False, True, True]
    assert read.NO_GROUP == NO_GROUP


def test_the_second_part_answers_a_row_with_a_nan_confidence() -> None:
    routed = routes_to_second(CASCADE, confidences=[float("nan"), 0.6, 0.9])
    assert routed.tolist() == [True, True, False]


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
