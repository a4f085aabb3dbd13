"""Who of a hybrid's parts answers which row, and what temperature does to a probability."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from tailorbird.data import rows as read
from tailorbird.models.temperature import temperature_softmax
from tailorbird.registry.routing import NO_GROUP, Routing, routes_to_candidate

GROUP = Routing(by="group", column="sex", values=("f", "x"))
CONFIDENCE = Routing(by="confidence", threshold=0.7)
values = st.one_of(st.none(), st.text(max_size=3), st.sampled_from(["f", "x", "m", NO_GROUP]))
probabilities = st.floats(0, 1)


@given(st.lists(values))
def test_by_group_each_row_is_answered_by_exactly_one_and_the_candidate_gets_its_values(
    groups: list[str | None],
) -> None:
    routed = routes_to_candidate(GROUP, groups=groups)
    assert routed.dtype == np.bool_
    candidate, incumbent = np.flatnonzero(routed).tolist(), np.flatnonzero(~routed).tolist()
    assert sorted(candidate + incumbent) == list(range(len(groups)))
    assert {groups[row] for row in candidate} <= {"f", "x"}
    assert {groups[row] for row in incumbent}.isdisjoint({"f", "x"})


@given(st.lists(probabilities), probabilities)
def test_by_confidence_each_row_is_answered_by_exactly_one_and_the_incumbent_keeps_what_it_is_sure_of(
    confidences: list[float], threshold: float
) -> None:
    routed = routes_to_candidate(Routing(by="confidence", threshold=threshold), confidences=confidences)
    candidate, incumbent = np.flatnonzero(routed).tolist(), np.flatnonzero(~routed).tolist()
    assert sorted(candidate + incumbent) == list(range(len(confidences)))
    assert all(confidences[row] < threshold for row in candidate)
    assert all(confidences[row] >= threshold for row in incumbent)


@given(st.floats(0.0, 1.0, width=32))
def test_a_row_on_the_threshold_stays_with_the_incumbent_whatever_array_it_comes_in(confidence: float) -> None:
    routing = Routing(by="confidence", threshold=confidence)
    assert not routes_to_candidate(routing, confidences=[confidence]).any()
    just_above = Routing(by="confidence", threshold=min(float(np.nextafter(confidence, 2.0)), 1.0))
    for dtype in (np.float32, np.float64):
        column = np.array([confidence], dtype)
        assert not routes_to_candidate(routing, confidences=column).any()
        assert routes_to_candidate(just_above, confidences=column).all() == (confidence < 1.0)


def test_a_row_without_a_group_is_the_incumbents() -> None:
    assert routes_to_candidate(GROUP, groups=[None, NO_GROUP, "", "f"]).tolist() == [False, False, False, True]
    assert read.NO_GROUP == NO_GROUP


def test_a_confidence_that_is_no_number_is_not_taken_for_sure() -> None:
    assert routes_to_candidate(CONFIDENCE, confidences=[float("nan"), 0.9]).tolist() == [True, False]


def test_what_the_rule_looks_at_must_be_given_and_the_rest_is_ignored() -> None:
    with pytest.raises(ValueError, match="looks at 'sex'; give the rows' values as `groups`"):
        routes_to_candidate(GROUP, confidences=[0.5])
    with pytest.raises(ValueError, match="give them as `confidences`"):
        routes_to_candidate(CONFIDENCE, groups=["f"])
    assert routes_to_candidate(CONFIDENCE, groups=["f"], confidences=[0.9]).tolist() == [False]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"by": "group"}, "takes a column and its values"),
        ({"by": "group", "column": "sex"}, "takes a column and its values"),
        ({"by": "group", "column": "sex", "values": ("f",), "threshold": 0.5}, "no threshold"),
        ({"by": "group", "column": "sex", "values": ("f", NO_GROUP)}, "rows without a group are the incumbent's"),
        ({"by": "confidence"}, "takes a threshold"),
        ({"by": "confidence", "threshold": 0.5, "values": ("f",)}, "no column or values"),
        ({"by": "confidence", "threshold": 1.5}, "from 0 to 1, not 1.5"),
        ({"by": "confidence", "threshold": float("nan")}, "from 0 to 1, not nan"),
        ({"by": "chance"}, "not by 'chance'"),
    ],
)
def test_a_rule_that_says_too_little_or_too_much_is_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Routing(**fields)


@pytest.mark.parametrize("routing", [GROUP, CONFIDENCE, Routing(by="confidence", threshold=0.1 + 0.2)])
def test_a_rule_survives_its_json(routing: Routing) -> None:
    adapter = TypeAdapter(Routing)
    assert adapter.validate_json(adapter.dump_json(routing)) == routing


logits = st.lists(st.lists(st.floats(-50, 50, width=32), min_size=3, max_size=3), min_size=1, max_size=5)


@given(logits, st.floats(0.05, 20))
def test_temperature_keeps_the_order_and_leaves_probabilities(rows: list[list[float]], temperature: float) -> None:
    given_logits = np.array(rows, np.float32)
    found = temperature_softmax(given_logits, temperature=temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.sum(-1), 1.0, rtol=1e-5)
    best = given_logits.argmax(-1)
    assert (found[np.arange(len(rows)), best] == found.max(-1)).all()


@given(logits)
def test_a_hotter_model_is_less_sure(rows: list[list[float]]) -> None:
    found = np.array(rows, np.float64)
    assert (
        temperature_softmax(found, temperature=2.0).max(-1)
        <= temperature_softmax(found, temperature=1.0).max(-1) + 1e-12
    ).all()


def test_temperature_one_is_the_softmax_and_two_that_of_half_the_logits() -> None:
    rows = np.array([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(temperature_softmax(rows, temperature=1.0)[:, 0], [1 / (1 + np.exp(-2)), 0.5])
    np.testing.assert_allclose(temperature_softmax(rows, temperature=2.0)[:, 0], [1 / (1 + np.exp(-1)), 0.5])


def test_a_tiny_temperature_and_large_logits_give_numbers() -> None:
    assert temperature_softmax(np.array([1000.0, 999.0, -1000.0]), temperature=1e-3).tolist() == [1.0, 0.0, 0.0]
