from collections.abc import Sequence

import numpy as np
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.data.rows import NO_GROUP
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.monitoring.quality import (
    GroupAccuracy,
    Quality,
    fixed_groups,
    group_gate,
    quality,
)
from tailorbird.monitoring.traffic import Outcomes, Traffic
from tests.unit.monitoring.log_task import outcomes

ALPHA = 0.05


def labelled(
    *groups: tuple[str, int, int],
    audits: Sequence[int] = (1,),
    keys: Sequence[int] | None = None,
    requests: Sequence[int] | None = None,
) -> Outcomes:
    """Return the champion's outcomes of groups of (sex, right, wrong)."""
    right: list[bool] = []
    sexes: list[str] = []
    for sex, num_right, num_wrong in groups:
        right += [True] * num_right + [False] * num_wrong
        sexes += [sex] * (num_right + num_wrong)
    arms = ["champion"] * len(right)
    return outcomes(arms, right, keys=keys, requests=requests, audits=audits, sexes=sexes)


def measured(labelled: Outcomes, *, answers: int = 100, audited: bool = True) -> Quality:
    counts = {("champion", "d"): answers}
    traffic = Traffic(num_rows=answers, rows=counts, outcomes=labelled)
    return quality(traffic, champion="d", alpha=ALPHA, audited=audited)


def checked(labelled: Outcomes, **reference: tuple[int, int]) -> Gate:
    """Return the gate of the groups by sex against references of (rows, right answers)."""
    references = {}
    for value, (n, right) in reference.items():
        references[f"sex = {value}"] = GroupAccuracy(n=n, right=right, effective=n)
    limits = SubgroupGateConfig()
    return group_gate(labelled, columns=("sex",), reference=references, limits=limits, alpha=ALPHA)


def test_a_duplicate_row_of_the_log_counts_once() -> None:
    twice = labelled(("f", 8, 2), ("f", 8, 0), keys=[*range(10), *range(8)])
    result = measured(twice)
    assert (result.labelled, result.right) == (10, 8)
    (bound,) = checked(twice, f=(100, 80)).bounds
    assert (bound.n, bound.state) == (10, State.NOT_ASSESSABLE)


def test_feedback_fails_no_group() -> None:
    mixed = labelled(("f", 800, 200), ("f", 0, 200), audits=[1] * 1000 + [0] * 200)
    gate = checked(mixed, f=(1000, 800))
    assert (gate.state, gate.bounds[0].n) == (State.NOT_ASSESSABLE, 1000)
    assert checked(Outcomes(), f=(1000, 800)).state is State.NOT_ASSESSABLE


def test_a_group_with_a_proven_loss_fails_and_another_passes() -> None:
    now = labelled(("f", 600, 400), ("m", 1900, 100))
    gate = checked(now, f=(1000, 800), m=(1000, 940))
    states = {bound.what: bound.state for bound in gate.bounds}
    assert states == {"change for sex = f": State.FAILS, "change for sex = m": State.PASSES}
    assert gate.bounds[0].estimate == pytest.approx(-0.2)


def test_the_level_of_a_loss_is_divided_by_the_number_of_groups() -> None:
    alone = checked(labelled(("f", 105, 45)), f=(200, 160))
    with_another = checked(labelled(("f", 105, 45), ("m", 120, 30)), f=(200, 160), m=(200, 160))
    assert alone.bounds[0].state is State.FAILS
    assert with_another.bounds[0].state is State.NOT_ASSESSABLE


@pytest.mark.parametrize("per_request", [1, 8])
def test_equal_answers_to_one_request_fail_no_group_more_often_than_alpha(per_request: int) -> None:
    chance = np.random.default_rng(6)
    num_runs = 200
    failed = 0
    for _ in range(num_runs):
        num = per_request * chance.binomial(100, 0.8)
        requests = [row // per_request for row in range(100 * per_request)]
        gate = checked(
            labelled(("f", num, 100 * per_request - num), requests=requests),
            f=(400, chance.binomial(400, 0.8)),
        )
        assert gate.bounds[0].n == 100 * per_request
        failed += gate.state is State.FAILS
    assert failed / num_runs <= ALPHA


def test_the_interval_of_the_accuracy_is_that_of_the_effective_rows() -> None:
    by_request = labelled(("f", 80, 20), requests=[row // 4 for row in range(100)])
    result = measured(by_request, answers=1000)
    assert (result.accuracy, result.labelled, result.coverage) == (0.8, 100, 0.1)
    # Wilson interval for 20 of 25.
    assert result.interval == pytest.approx((0.609, 0.911), abs=1e-3)


def test_group_values_outside_the_reference_are_counted_but_not_printed() -> None:
    now = labelled(("Jane Doe", 5, 5), ("f", 5, 5), (NO_GROUP, 5, 5))
    gate = checked(now, f=(10, 5), **{NO_GROUP: (10, 5)})
    assert [(bound.what, bound.n) for bound in gate.bounds] == [
        (f"change for sex = {NO_GROUP}", 10),
        ("change for sex = f", 10),
    ]
    assert gate.note.endswith(" 10 of sex = (others)")


def test_groups_are_the_twenty_most_common_values_of_the_reference() -> None:
    reference = {"sex = f": GroupAccuracy(n=5, right=5, effective=5)}
    for number in range(30):
        ward = GroupAccuracy(n=100 - number, right=50, effective=50)
        reference[f"ward = {number:02}"] = ward
    fixed = fixed_groups(reference, columns=("sex", "ward"))
    assert fixed == ("sex = f", *(f"ward = {number:02}" for number in range(20)))
