"""Units of the comparison between challenger and champion; a row is (key, arm, right, unit, hour,
audit)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tailorbird.evaluation.statistics.confidence_sequence import log_e_value
from tailorbird.monitoring.challenger_units import (
    UnitOutcome,
    control_share,
    unit_differences,
    unit_outcomes,
)
from tailorbird.monitoring.sequential_test import UnitDifferences
from tailorbird.monitoring.traffic import ARMS, HOUR_US, Outcomes
from tailorbird.registry.draws import CODES

Row = tuple[int, str, bool, int, int, int]


def logged(*rows: Row, sexes: Sequence[str] = (), subjects: bool = True) -> Outcomes:
    keys, arms, right, units, hours, audits = zip(*rows, strict=True) if rows else ((),) * 6
    return Outcomes(
        np.array(keys, np.uint64),
        np.array([ARMS.index(arm) for arm in arms], np.uint8),
        np.array(hours, np.int64) * HOUR_US,
        np.array(right, float),
        np.array(audits, np.int32),
        tuple((sex,) for sex in sexes or "f" * len(rows)),
        units=np.array(units, np.uint64),
        is_subject=np.full(len(rows), subjects),
        by_person=np.zeros(len(rows), bool),
        missing=np.zeros(len(rows), bool),
    )


def compared(
    outcomes: Outcomes, *, share: float = 1.0, group: str | None = None
) -> UnitDifferences:
    of_day = unit_outcomes(outcomes, columns=("sex",), fixed=("sex = f", "sex = m"), share=share)
    return unit_differences(of_day, group=group)


def both(key: int, *, champion: bool, shadow: bool, unit: int, audit: int = 1) -> list[Row]:
    return [(key, "champion", champion, unit, 9, audit), (key, "shadow", shadow, unit, 9, audit)]


def test_the_texts_of_a_unit_are_one_difference() -> None:
    rows = [row for key in range(8) for row in both(key, champion=False, shadow=key < 6, unit=1)]
    rows += both(8, champion=True, shadow=False, unit=2)
    result = compared(logged(*rows))
    assert result.values.tolist() == [0.75, -1.0]
    assert (result.num_subjects, result.num_answers, result.matched) == (2, 9, False)
    assert compared(logged(*rows, subjects=False)).num_subjects == 0


def test_missing_answers_of_a_shadow_have_bounds() -> None:
    rows = both(1, champion=True, shadow=False, unit=1) + both(
        2, champion=False, shadow=False, unit=1
    )
    rows += both(3, champion=True, shadow=False, unit=2) + both(
        4, champion=False, shadow=True, unit=3
    )
    outcomes = replace(
        logged(*rows), missing=np.arange(8) % 4 == 1
    )  # the first answers of units 1 and 2
    result = compared(outcomes)
    assert result.values.tolist() == [-0.5, -1.0, 1.0]
    assert result.highest.tolist() == [0.0, 0.0, 1.0]
    assert result.num_missing == 2
    assert "(4 labelled answers, of which 2 missing ones count as 0)" in result.sentence()


def test_missing_answers_prove_neither_a_gain_nor_a_loss() -> None:
    """The shadow answers as well as the champion, and either its wrong or its right answers are
    missing."""
    for lost in (False, True):
        rows = [
            row
            for key in range(400)
            for row in both(key, champion=key % 4 < 2, shadow=key % 2 < 1, unit=1000 + key)
        ]
        log = logged(*rows)
        is_lost = (log.arms == ARMS.index("shadow")) & (log.scores == lost)
        log = replace(log, missing=is_lost, scores=np.where(is_lost, 0.0, log.scores))
        kept = compared(
            logged(*(row for row, is_missing in zip(rows, is_lost, strict=True) if not is_missing))
        )
        assert log_e_value(kept.values if not lost else -kept.values) > np.log(
            20
        )  # without the missing answers
        result = compared(log)
        assert max(log_e_value(result.values), log_e_value(-result.highest)) < np.log(20)


def test_a_unit_in_both_arms_counts_in_that_of_its_first_audit() -> None:
    first: list[Row] = [(1, "canary", True, 1, 8, 1), (2, "champion", False, 2, 8, 1)]
    later = both(3, champion=True, shadow=False, unit=1, audit=2) + both(
        4, champion=True, shadow=False, unit=2, audit=2
    )
    new = both(5, champion=False, shadow=True, unit=3, audit=2)
    assert compared(logged(*first)).values.tolist() == [1.0]
    result = compared(logged(*first, *later, *new))
    assert (sorted(result.values.tolist()), result.matched) == (
        [1.0, 1.0],
        True,
    )  # the first decision stays valid
    same_audit = both(3, champion=True, shadow=False, unit=1, audit=1)
    assert compared(logged(*first, *same_audit)).values.tolist() == [-1.0]


def test_a_unit_counts_once_with_its_first_audit_in_any_order_of_the_log() -> None:
    first = both(1, champion=False, shadow=True, unit=1, audit=2)
    later = both(2, champion=True, shadow=False, unit=1, audit=3)
    later += both(3, champion=True, shadow=True, unit=2, audit=3)
    assert sorted(compared(logged(*later, *first)).values) == [0.0, 1.0]
    outcomes: list[UnitOutcome] = []
    for rows in (later, first):
        outcomes += unit_outcomes(logged(*rows), columns=(), fixed=(), share=0.0)
    assert sorted(unit_differences(outcomes).values) == [0.0, 1.0]


def test_only_texts_that_both_versions_answered_are_compared_and_duplicates_count_once() -> None:
    rows = both(1, champion=True, shadow=False, unit=1)
    alone: list[Row] = [(2, "champion", True, 2, 9, 1), (3, "shadow", True, 3, 9, 1)]
    assert compared(logged(*rows, *alone, *rows)).values.tolist() == [-1.0]
    by_feedback = replace(logged(*rows), audits=np.zeros(len(rows), np.int32))
    assert len(compared(by_feedback)) == 0  # feedback is not a random sample
    assert len(compared(logged())) == 0


def test_a_canary_is_compared_with_the_champion_of_the_same_hour_and_audit() -> None:
    morning: list[Row] = [(key, "champion", False, 10 + key, 6, 1) for key in range(20)]
    noon: list[Row] = [
        (30, "champion", True, 5, 12, 1),
        (31, "canary", True, 6, 12, 1),
        (32, "canary", True, 7, 6, 1),
    ]
    result = compared(logged(*morning, *noon))
    assert sorted(result.values.tolist()) == [0.0, 1.0]
    assert result.matched
    for hour, audit in ((8, 1), (30, 1), (6, 2)):
        rows: list[Row] = [(1, "canary", True, 1, 6, 1), (2, "champion", False, 2, hour, audit)]
        assert len(compared(logged(*rows))) == 0


def test_the_arm_with_more_units_shares_its_matches() -> None:
    canary: list[Row] = [(unit, "canary", unit != 5, unit, 6, 1) for unit in range(1, 6)]
    champion: list[Row] = [(6, "champion", True, 6, 6, 1), (7, "champion", False, 7, 6, 1)]
    result = compared(logged(*canary, *champion))
    assert result.values.tolist() == pytest.approx(
        [2 / 3 - 1, 1.0]
    )  # units 1, 3 and 5, and units 2 and 4
    assert (result.num_subjects, result.num_answers) == (2, 5)


def test_a_unit_counts_with_its_answers_of_the_first_hour_with_both_arms() -> None:
    alone: list[Row] = [(1, "canary", False, 1, 6, 1)]
    matched: list[Row] = [
        (2, "canary", True, 1, 7, 1),
        (3, "canary", False, 1, 7, 1),
        (4, "champion", False, 2, 7, 1),
    ]
    later: list[Row] = [(5, "canary", False, 1, 8, 1), (6, "champion", True, 3, 8, 1)]
    assert compared(logged(*alone, *matched, *later)).values.tolist() == [0.5]


def test_only_control_units_are_compared_with_a_canary() -> None:
    low, high = CODES // 100, CODES // 2
    rows: list[Row] = [
        (1, "champion", False, high, 9, 1),
        (2, "champion", True, low, 9, 1),
        (3, "canary", True, 3, 9, 1),
    ]
    assert compared(logged(*rows), share=control_share(0.05)).values.tolist() == [0.0]
    assert [control_share(canary) for canary in (None, 0.2, 0.5, 0.9)] == [0.0, 0.25, 1.0, 1.0]


def test_a_subject_that_moves_to_the_canary_counts_once() -> None:
    moved: list[Row] = [
        (1, "canary", True, 9, 8, 1),
        (2, "champion", True, 1, 9, 1),
        (3, "canary", False, 1, 10, 2),
    ]
    other: list[Row] = [(4, "champion", True, 2, 10, 2)]
    assert compared(logged(*moved, *other)).values.tolist() == [-1.0]
    first: list[Row] = [(5, "canary", True, 3, 9, 1)]
    assert compared(logged(*moved, *other, *first)).values.tolist() == [
        0.0
    ]  # as a unit of the champion


def test_in_a_group_only_its_answers_are_compared() -> None:
    rows = both(1, champion=False, shadow=True, unit=1) + both(
        2, champion=True, shadow=False, unit=1
    )
    outcomes = logged(*rows, sexes="ffmm")
    assert compared(outcomes, group="sex = f").values.tolist() == [1.0]
    assert compared(outcomes, group="sex = m").values.tolist() == [-1.0]
    assert compared(outcomes).values.tolist() == [0.0]


@pytest.mark.parametrize("arm", ["canary", "shadow"])
def test_an_equal_challenger_is_not_promoted_if_few_subjects_send_most_requests(arm: str) -> None:
    chance, promoted, runs = np.random.default_rng(2), 0, 60
    for _ in range(runs):
        units = chance.integers(0, CODES, 60, np.uint64)
        of_arm = (
            np.where(chance.random(60) < 0.5, arm, "champion")
            if arm == "canary"
            else np.full(60, "champion")
        )
        right = chance.random((2, 60)) < 0.5  # all answers to a subject are right, or all are wrong
        rows: list[Row] = []
        for key, subject in enumerate((60 * chance.random(400) ** 3).astype(int).tolist()):
            unit, hour, audit = int(units[subject]), key % 24, 1 + key // 100
            arms = [str(of_arm[subject])] + ["shadow"] * (arm == "shadow")
            rows += [
                (key, name, bool(right[int(name != "champion"), subject]), unit, hour, audit)
                for name in arms
            ]
        of_day = unit_outcomes(logged(*rows), columns=(), fixed=(), share=1.0)
        looks = ([outcome for outcome in of_day if outcome.audit <= audit] for audit in range(1, 5))
        promoted += any(
            log_e_value(unit_differences(look).values) >= np.log(1 / 0.2) for look in looks
        )
    assert promoted / runs <= 0.2
