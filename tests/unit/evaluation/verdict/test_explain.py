"""Reasons say of each bound what is known of that bound."""

from tailorbird.evaluation.gates.base import Bound, Gate, State
from tailorbird.evaluation.verdict.explain import open_gates

OPEN = State.NOT_ASSESSABLE


def test_each_group_that_cannot_be_assessed_is_named_with_the_rows_it_takes() -> None:
    bounds = (
        Bound("change in sex = female", -0.01, (-0.05, 0.03), -0.03, 200, OPEN, 1300),
        Bound("change in sex = male", 0.02, (-0.01, 0.05), -0.03, 900, State.PASSES),
        Bound("change in sex = unstated", -0.02, (-0.2, 0.16), -0.03, 20, OPEN, 5000),
    )
    [reason] = open_gates((Gate("groups", OPEN, bounds),), regulated=True)
    assert reason == (
        "the gate groups cannot be assessed on these rows: "
        "change in sex = female -1.00 (-5.00 to 3.00 points), limit -3.00, n = 200, "
        "where it takes about 1,300 rows of that group; "
        "change in sex = unstated -2.00 (-20.00 to 16.00 points), limit -3.00, n = 20, "
        "where it takes about 5,000 rows of that group, and the recipe is regulated"
    )


def test_a_gate_without_bounds_says_why() -> None:
    [reason] = open_gates((Gate("cost", OPEN, (), "what a hybrid incumbent costs to serve is not measured"),))
    assert reason == (
        "the gate cost cannot be assessed on these rows: what a hybrid incumbent costs to serve is not measured"
    )
