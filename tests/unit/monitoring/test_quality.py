from dataclasses import replace

import numpy as np
import pytest

from evaluation.gates import State
from monitoring.betting import Pairs
from monitoring.quality import Before, groups_now, groups_of, quality, trial_groups, trial_pairs
from monitoring.traffic import ARMS, Outcomes, Traffic
from recipes.schema import GroupsGate

LIMITS, ALPHA = GroupsGate(), 0.05


def outcomes(*rows: tuple[int, str, bool, str], audited: bool = False) -> Outcomes:
    """Rows of key, arm, right, sex; in the order of time."""
    return Outcomes(
        np.array([row[0] for row in rows], np.uint64),
        np.array([ARMS.index(row[1]) for row in rows], np.uint8),
        np.arange(len(rows)),
        np.array([row[2] for row in rows], bool),
        np.full(len(rows), audited),
        tuple((row[3],) for row in rows),
    )


def of_champion(right: int, wrong: int, sex: str, *, first: int = 0) -> list[tuple[int, str, bool, str]]:
    return [(first + number, "champion", number < right, sex) for number in range(right + wrong)]


def test_accuracy_has_an_interval_and_says_of_how_many_answers_the_label_is_known() -> None:
    told = outcomes(*of_champion(80, 20, "f"))
    traffic = Traffic(1000, {("champion", "d"): 1000}, confidence_sum=900.0, outcomes=told)
    found = quality(traffic, champion="d", alpha=ALPHA, audited=False)
    assert (found.accuracy, found.coverage, found.estimate) == (0.8, 0.1, 0.9)
    assert found.interval == pytest.approx((0.711, 0.867), abs=1e-3)  # Wilson's for 80 of 100
    audit = quality(traffic, champion="d", alpha=ALPHA, audited=True)
    assert (audit.accuracy, audit.interval, audit.estimate) == (None, (0.0, 1.0), 0.9)


def test_a_group_that_lost_is_found_and_one_that_did_not_passes() -> None:
    told = outcomes(*of_champion(600, 400, "f"), *of_champion(1900, 100, "m", first=1000))
    before = {"sex = f": Before(1000, 800), "sex = m": Before(1000, 940)}
    gate = groups_now(told, columns=("sex",), before=before, limits=LIMITS, alpha=ALPHA)
    states = {bound.what: bound.state for bound in gate.bounds}
    assert states == {"change in sex = f": State.FAILS, "change in sex = m": State.PASSES}
    assert gate.bounds[0].estimate == pytest.approx(-0.2)


def test_a_few_labels_of_a_group_decide_nothing_however_bad_they_look() -> None:
    told = outcomes(*of_champion(5, 2, "f"))
    gate = groups_now(told, columns=("sex",), before={"sex = f": Before(100, 80)}, limits=LIMITS, alpha=ALPHA)
    assert [bound.state for bound in gate.bounds] == [State.NOT_ASSESSABLE]


def test_unchanged_groups_fail_no_more_often_than_alpha() -> None:
    chance, failed = np.random.default_rng(5), 0
    for _ in range(40):
        rows = []
        for place, sex in enumerate("ab"):
            right = int(chance.binomial(150, 0.8))
            rows += of_champion(right, 150 - right, sex, first=1000 * place)
        before = {f"sex = {sex}": Before(200, int(chance.binomial(200, 0.8))) for sex in "ab"}
        gate = groups_now(outcomes(*rows), columns=("sex",), before=before, limits=LIMITS, alpha=ALPHA)
        failed += gate.state is State.FAILS
    assert failed / 40 <= ALPHA + 0.08


def test_groups_that_had_no_row_before_are_named_and_not_compared() -> None:
    told = outcomes(*of_champion(5, 5, "x"), *of_champion(5, 5, "f", first=100))
    gate = groups_now(told, columns=("sex",), before={"sex = f": Before(10, 5)}, limits=LIMITS, alpha=ALPHA)
    assert [bound.what for bound in gate.bounds] == ["change in sex = f"]
    assert gate.note == "not compared, for they had no row before: sex = x"
    nothing = groups_now(Outcomes(), columns=("sex",), before={}, limits=LIMITS, alpha=ALPHA)
    assert nothing.state is State.NOT_ASSESSABLE


def test_of_a_column_with_many_values_the_rest_is_one_group() -> None:
    rows = [(number, "champion", True, f"ward {number % 40}") for number in range(400)]
    masks = groups_of(outcomes(*rows), ("ward",))
    assert len(masks) == 21
    assert int(masks["ward = others"].sum()) == 200
    assert sum(int(mask.sum()) for mask in masks.values()) == 400


def test_a_shadow_is_paired_with_the_champion_on_the_same_text() -> None:
    told = outcomes(
        (1, "champion", True, "f"),
        (1, "shadow", False, "f"),
        (2, "shadow", True, "m"),
        (2, "champion", False, "m"),
        (3, "champion", True, "m"),
        (4, "shadow", True, "m"),
        (1, "shadow", False, "f"),  # stands twice in the log
    )
    pairs, groups, _ = trial_pairs(told, columns=("sex",))
    assert pairs == Pairs(only_trial_right=1, only_champion_right=1, num_pairs=2)
    assert groups == {"sex = f": Pairs(0, 1, 1), "sex = m": Pairs(1, 0, 1)}


def test_a_canarys_answers_are_paired_with_the_champions_by_their_order_in_time() -> None:
    told = outcomes(
        (1, "champion", True, "f"),
        (2, "champion", False, "f"),
        (3, "canary", False, "f"),
        (4, "canary", True, "m"),
        (5, "canary", True, "m"),
    )
    pairs, _, _ = trial_pairs(told, columns=("sex",))
    assert pairs == Pairs(only_trial_right=1, only_champion_right=1, num_pairs=2)
    backwards = replace(told, at=told.at[::-1].copy())
    assert trial_pairs(backwards, columns=("sex",))[0] == Pairs(only_trial_right=1, only_champion_right=0, num_pairs=2)


def test_without_a_labelled_pair_there_is_none() -> None:
    pairs, groups, tables = trial_pairs(outcomes((1, "champion", True, "f")), columns=("sex",))
    assert pairs == Pairs(0, 0, 0)
    assert trial_groups(groups, tables, limits=LIMITS, alpha=ALPHA).state is State.NOT_ASSESSABLE


def test_a_trials_groups_are_read_as_the_verdict_reads_them() -> None:
    rows = [row for key in range(300) for row in ((key, "champion", True, "f"), (key, "shadow", key % 10 > 0, "f"))]
    _, groups, tables = trial_pairs(outcomes(*rows), columns=("sex",))
    gate = trial_groups(groups, tables, limits=LIMITS, alpha=ALPHA)
    assert gate.state is State.FAILS
    assert gate.bounds[0].what == "change in sex = f"
