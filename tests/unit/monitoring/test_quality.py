from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.data.rows import NO_GROUP
from tailorbird.evaluation.gates.base import Gate, State
from tailorbird.monitoring.quality import (
    GroupAccuracy,
    fixed_groups,
    group_gate,
    group_masks,
    quality,
)
from tailorbird.monitoring.traffic import ARMS, Outcomes, Traffic

LIMITS, ALPHA = SubgroupGateConfig(), 0.05


def outcomes(*rows: tuple[int, str, bool, str], audited: bool = True) -> Outcomes:
    """Return outcomes from rows of (key, arm, right, sex) in order of time."""
    return Outcomes(
        np.array([row[0] for row in rows], np.uint64),
        np.array([ARMS.index(row[1]) for row in rows], np.uint8),
        np.arange(len(rows)),
        np.array([row[2] for row in rows], float),
        np.full(len(rows), audited, np.int32),
        tuple((row[3],) for row in rows),
        units=np.arange(len(rows), dtype=np.uint64),
        is_subject=np.zeros(len(rows), bool),
        by_person=np.zeros(len(rows), bool),
        missing=np.zeros(len(rows), bool),
    )


def accuracy(n: int, right: int) -> GroupAccuracy:
    return GroupAccuracy(n, right, effective=n)


def of_champion(
    right: int, wrong: int, sex: str, *, first: int = 0
) -> list[tuple[int, str, bool, str]]:
    return [(first + number, "champion", number < right, sex) for number in range(right + wrong)]


def test_accuracy_has_an_interval_and_the_share_of_labelled_answers() -> None:
    labelled = outcomes(*of_champion(80, 20, "f"), audited=False)
    traffic = Traffic(
        1000,
        {("champion", "d"): 1000},
        unanswered={("champion", "d"): 500},
        outcomes=labelled,
    )
    result = quality(traffic, champion="d", alpha=ALPHA, audited=False)
    assert (result.accuracy, result.coverage) == (0.8, 0.1)
    assert result.interval == pytest.approx(
        (0.711, 0.867), abs=1e-3
    )  # Wilson interval for 80 of 100
    audit = quality(traffic, champion="d", alpha=ALPHA, audited=True)
    assert (audit.accuracy, audit.interval) == (None, (0.0, 1.0))


def checked(labelled: Outcomes, **reference: GroupAccuracy) -> Gate:
    """Return the gate of the groups by sex."""
    references = {f"sex = {value}": accuracy for value, accuracy in reference.items()}
    return group_gate(labelled, columns=("sex",), reference=references, limits=LIMITS, alpha=ALPHA)


def test_a_duplicate_row_of_the_log_counts_once() -> None:
    labelled = outcomes(*of_champion(8, 2, "f"), *of_champion(8, 0, "f"))
    traffic = Traffic(20, {("champion", "d"): 20}, outcomes=labelled)
    result = quality(traffic, champion="d", alpha=ALPHA, audited=True)
    assert (result.labelled, result.right) == (10, 8)
    (bound,) = checked(labelled, f=accuracy(100, 80)).bounds
    assert (bound.n, bound.state) == (10, State.NOT_ASSESSABLE)


def test_feedback_fails_no_group() -> None:
    labelled = outcomes(*of_champion(0, 200, "f"), audited=False)
    gate = checked(labelled, f=accuracy(1000, 800))
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    both = outcomes(*of_champion(800, 200, "f"), *of_champion(0, 200, "f", first=5000))
    both = replace(both, audits=(np.arange(1200) < 1000).astype(np.int32))
    gate = checked(both, f=accuracy(1000, 800))
    assert (gate.state, gate.bounds[0].n) == (State.NOT_ASSESSABLE, 1000)


def test_a_group_with_a_proven_loss_fails_and_another_passes() -> None:
    labelled = outcomes(*of_champion(600, 400, "f"), *of_champion(1900, 100, "m", first=1000))
    gate = checked(labelled, f=accuracy(1000, 800), m=accuracy(1000, 940))
    states = {bound.what: bound.state for bound in gate.bounds}
    assert states == {"change for sex = f": State.FAILS, "change for sex = m": State.PASSES}
    assert gate.bounds[0].estimate == pytest.approx(-0.2)


def test_unchanged_groups_fail_no_more_often_than_alpha() -> None:
    chance, failed = np.random.default_rng(5), 0
    for _ in range(40):
        rows = []
        for index, sex in enumerate("ab"):
            right = int(chance.binomial(150, 0.8))
            rows += of_champion(right, 150 - right, sex, first=1000 * index)
        reference = {sex: accuracy(200, int(chance.binomial(200, 0.8))) for sex in "ab"}
        gate = checked(outcomes(*rows), **reference)
        failed += gate.state is State.FAILS
    assert failed / 40 <= ALPHA + 0.08


@pytest.mark.parametrize("per_unit", [1, 8])
def test_equal_answers_to_one_unit_fail_no_group_more_often_than_alpha(per_unit: int) -> None:
    chance, failed, runs = np.random.default_rng(6), 0, 200
    for _ in range(runs):
        right = np.repeat(chance.random(100) < 0.8, per_unit).tolist()
        labelled = outcomes(*((key, "champion", answer, "f") for key, answer in enumerate(right)))
        labelled = replace(
            labelled, units=np.arange(len(right), dtype=np.uint64) // np.uint64(per_unit)
        )
        before = int(chance.binomial(400, 0.8))
        gate = checked(labelled, f=accuracy(400, before))
        assert gate.bounds[0].n == 100 * per_unit
        failed += gate.state is State.FAILS
    assert failed / runs <= ALPHA


def test_the_interval_of_the_accuracy_is_that_of_the_effective_rows() -> None:
    labelled = outcomes(*of_champion(80, 20, "f"))
    traffic = Traffic(100, {("champion", "d"): 100}, outcomes=labelled)
    single = quality(traffic, champion="d", alpha=ALPHA, audited=True)
    alike = np.concatenate([np.repeat(np.arange(20), 4), np.repeat(np.arange(20, 25), 4)]).astype(
        np.uint64
    )
    paired = quality(
        replace(traffic, outcomes=replace(labelled, units=alike)),
        champion="d",
        alpha=ALPHA,
        audited=True,
    )
    assert (paired.accuracy, paired.labelled) == (single.accuracy, 100)
    assert paired.interval == pytest.approx(
        (0.609, 0.911), abs=1e-3
    )  # Wilson interval for 20 of 25


def test_group_values_outside_the_reference_are_counted_but_not_printed() -> None:
    labelled = outcomes(*of_champion(5, 5, "Jane Doe"), *of_champion(5, 5, "f", first=100))
    gate = checked(labelled, f=accuracy(10, 5))
    assert [bound.what for bound in gate.bounds] == ["change for sex = f"]
    assert gate.note == "labelled rows that were not compared: 10 of sex = (others)"
    assert checked(Outcomes()).state is State.NOT_ASSESSABLE
    alone = checked(labelled, m=accuracy(10, 5))
    assert (alone.bounds, "20 of sex = (others)" in alone.note) == ((), True)


def test_rows_without_a_value_form_the_same_group_as_in_the_reference() -> None:
    labelled = outcomes(*of_champion(5, 5, NO_GROUP))
    gate = checked(labelled, **{"(none)": accuracy(10, 5)})
    assert [(bound.what, bound.n) for bound in gate.bounds] == [("change for sex = (none)", 10)]


def test_groups_are_the_twenty_most_common_values_of_the_reference() -> None:
    reference = {f"ward = {number:02}": accuracy(100 - number, 50) for number in range(30)} | {
        "sex = f": accuracy(5, 5)
    }
    fixed = fixed_groups(reference, columns=("sex", "ward"))
    assert fixed == ("sex = f", *(f"ward = {number:02}" for number in range(20)))
    rows = [(number, "champion", True, f"{number % 40:02}") for number in range(400)]
    masks = group_masks(
        outcomes(*rows), columns=("ward",), fixed=fixed_groups(reference, columns=("ward",))
    )
    assert len(masks) == 21
    assert int(masks["ward = (others)"].sum()) == 200
    assert sum(int(mask.sum()) for mask in masks.values()) == 400
