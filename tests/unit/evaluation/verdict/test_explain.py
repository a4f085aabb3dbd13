"""Tests of the sentences that explain a verdict."""

from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.verdict.explain import open_gates

OPEN = State.NOT_ASSESSABLE


def test_each_group_that_cannot_be_assessed_is_named_with_the_rows_needed() -> None:
    bounds = (
        Bound("change for sex = female", -0.01, (-0.05, 0.03), -0.03, 200, OPEN, 1300),
        Bound("change for sex = male", 0.02, (-0.01, 0.05), -0.03, 900, State.PASSES),
        Bound("change for sex = unstated", -0.02, (-0.2, 0.16), -0.03, 20, OPEN, 5000),
    )
    [reason] = open_gates((Gate("groups", OPEN, bounds),), regulated=True)
    assert reason == (
        "the groups gate does not rule out a loss in these groups, but a regulated recipe requires it to pass: "
        "sex = female (n = 200, about 1,300 needed if nothing changed), sex = unstated (n = 20, about 5,000 needed if "
        "nothing changed)"
    )


def test_a_gate_without_bounds_is_explained_by_its_note() -> None:
    [reason] = open_gates((Gate("cost", OPEN, (), "the serving cost is not measured"),))
    assert reason == ("the cost gate cannot be assessed on these rows: the serving cost is not measured")
