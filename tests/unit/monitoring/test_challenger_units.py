"""Units of the comparison between challenger and champion; a row is (key, arm, right, unit, hour,
audit)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count

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
from tailorbird.monitoring.traffic import ARMS, Outcomes
from tailorbird.registry.draws import CODES
from tests.unit.monitoring.log_task import outcomes

Rows = list[tuple[int, str, bool, int, int, int]]
KEYS = count()


def one(arm: str, unit: int, right: bool, *, hour: int = 9, audit: int = 1) -> Rows:
    """Return an answer to a text of its own."""
    return [(next(KEYS), arm, right, unit, hour, audit)]


def both(unit: int, champion: bool, shadow: bool, *, audit: int = 1) -> Rows:
    """Return the answers of champion and shadow to one text."""
    key = next(KEYS)
    return [(key, "champion", champion, unit, 9, audit), (key, "shadow", shadow, unit, 9, audit)]


def logged(*parts: Rows, sexes: str = "f", are_subjects: bool = True) -> Outcomes:
    rows = list(chain(*parts))
    keys, arms, right, units, hours, audits = zip(*rows, strict=True) if rows else ((),) * 6
    return outcomes(
        arms,
        right,
        keys=keys,
        units=units,
        hours=hours,
        audits=audits,
        sexes=sexes,
        are_subjects=are_subjects,
    )


def compare(log: Outcomes, *, share: float = 1.0, group: str | None = None) -> UnitDifferences:
    units = unit_outcomes(log, columns=("sex",), fixed=("sex = f", "sex = m"), share=share)
    return unit_differences(units, group=group)


def differences(*parts: Rows) -> list[float]:
    return sorted(compare(logged(*parts)).values.tolist())


def test_missing_answers_of_a_shadow_have_bounds() -> None:
    rows = [both(1, True, False), both(1, False, False), both(2, True, False)]
    log = logged(*rows, both(3, False, True))
    result = compare(replace(log, missing=np.arange(8) % 4 == 1))  # the first of units 1 and 2
    assert result.values.tolist() == [-0.5, -1.0, 1.0]
    assert result.highest.tolist() == [0.0, 0.0, 1.0]
    assert result.num_missing == 2


@pytest.mark.parametrize("lost", [False, True])
def test_missing_answers_prove_neither_a_gain_nor_a_loss(lost: bool) -> None:
    """The shadow answers as well as the champion, and either its wrong or its right answers are
    missing."""
    rows = [both(key, key % 4 < 2, key % 2 < 1) for key in range(400)]
    answered = [[row for row in pair if row[1] != "shadow" or row[2] != lost] for pair in rows]
    sign = -1 if lost else 1
    assert log_e_value(sign * compare(logged(*answered)).values) > np.log(20)

    log = logged(*rows)
    missing = (log.arms == ARMS.index("shadow")) & (log.scores == lost)
    result = compare(replace(log, missing=missing, scores=np.where(missing, 0.0, log.scores)))
    assert max(log_e_value(result.values), log_e_value(-result.highest)) < np.log(20)


def test_a_unit_in_both_arms_counts_in_that_of_its_first_audit() -> None:
    first = one("canary", 1, True) + one("champion", 2, False)
    later = both(1, True, False, audit=2) + both(2, True, False, audit=2)
    assert differences(first) == [1.0]
    # The first decision stays valid.
    assert differences(first, later, both(3, False, True, audit=2)) == [1.0, 1.0]
    assert differences(first, both(1, True, False)) == [-1.0]


def test_a_unit_counts_once_with_its_first_audit_in_any_order_of_the_log() -> None:
    first = both(1, False, True, audit=2)
    later = both(1, True, False, audit=3) + both(2, True, True, audit=3)
    assert differences(later, first) == [0.0, 1.0]
    units: list[UnitOutcome] = []
    for rows in (later, first):
        units += unit_outcomes(logged(rows), columns=(), fixed=(), share=0.0)
    assert sorted(unit_differences(units).values) == [0.0, 1.0]


def test_only_texts_that_both_versions_answered_are_compared_and_duplicates_count_once() -> None:
    rows = both(1, True, False)
    assert differences(rows, one("champion", 2, True), one("shadow", 3, True), rows) == [-1.0]
    by_feedback = replace(logged(rows), audits=np.zeros(2, np.int32))
    assert len(compare(by_feedback)) == 0  # feedback is not a random sample
    assert differences() == []


def test_a_canary_is_compared_with_the_champion_of_the_same_hour_and_audit() -> None:
    morning = [one("champion", 10 + unit, False, hour=6) for unit in range(20)]
    noon = one("champion", 5, True, hour=12) + one("canary", 6, True, hour=12)
    result = compare(logged(*morning, noon, one("canary", 7, True, hour=6)))
    assert sorted(result.values.tolist()) == [0.0, 1.0]
    assert result.matched
    for hour, audit in ((8, 1), (33, 1), (9, 2)):
        unmatched = one("champion", 2, False, hour=hour, audit=audit)
        assert differences(one("canary", 1, True), unmatched) == []


def test_the_arm_with_more_units_shares_its_matches() -> None:
    canary = [one("canary", unit, unit != 5) for unit in range(1, 6)]
    result = compare(logged(*canary, one("champion", 6, True), one("champion", 7, False)))
    # Units 1, 3 and 5, and units 2 and 4.
    assert result.values.tolist() == pytest.approx([2 / 3 - 1, 1.0])
    assert (result.num_subjects, result.num_answers) == (2, 5)


def test_a_unit_counts_with_its_answers_of_the_first_hour_with_both_arms() -> None:
    alone = one("canary", 1, False, hour=6)
    matched = one("canary", 1, True, hour=7) + one("canary", 1, False, hour=7)
    matched += one("champion", 2, False, hour=7)
    later = one("canary", 1, False, hour=8) + one("champion", 3, True, hour=8)
    assert differences(alone, matched, later) == [0.5]


def test_only_control_units_are_compared_with_a_canary() -> None:
    control = one("champion", CODES // 100, True) + one("champion", CODES // 2, False)
    log = logged(control, one("canary", 3, True))
    assert compare(log, share=control_share(0.05)).values.tolist() == [0.0]
    assert [control_share(canary) for canary in (None, 0.2, 0.5, 0.9)] == [0.0, 0.25, 1.0, 1.0]


def test_a_subject_that_moves_to_the_canary_counts_once() -> None:
    moved = one("canary", 9, True, hour=8) + one("champion", 1, True, hour=9)
    moved += one("canary", 1, False, hour=10, audit=2)
    moved += one("champion", 2, True, hour=10, audit=2)
    assert differences(moved) == [-1.0]
    assert differences(moved, one("canary", 3, True)) == [0.0]  # as a unit of the champion


def test_in_a_group_only_its_answers_are_compared() -> None:
    log = logged(both(1, False, True), both(1, True, False), sexes="ffmm")
    assert compare(log, group="sex = f").values.tolist() == [1.0]
    assert compare(log, group="sex = m").values.tolist() == [-1.0]
    assert compare(log).values.tolist() == [0.0]


@pytest.mark.parametrize("arm", ["canary", "shadow"])
def test_an_equal_challenger_is_not_promoted_if_few_subjects_send_most_requests(arm: str) -> None:
    """All answers to a subject are right, or all are wrong."""
    chance = np.random.default_rng(2)
    num_runs = 60
    promoted = 0
    for _ in range(num_runs):
        units = chance.integers(0, CODES, 60, np.uint64).tolist()
        is_moved = (chance.random(60) < 0.5) & (arm == "canary")
        right = (chance.random((2, 60)) < 0.5).tolist()
        rows = []
        for key, subject in enumerate((60 * chance.random(400) ** 3).astype(int).tolist()):
            unit = units[subject]
            audit = 1 + key // 100
            if arm == "shadow":
                rows.append(both(unit, right[0][subject], right[1][subject], audit=audit))
                continue
            name = arm if is_moved[subject] else "champion"
            is_right = right[int(is_moved[subject])][subject]
            rows.append(one(name, unit, is_right, hour=key % 24, audit=audit))
        outcomes = unit_outcomes(logged(*rows), columns=(), fixed=(), share=1.0)
        promoted += is_promoted(outcomes)
    assert promoted / num_runs <= 0.2


def is_promoted(units: Sequence[UnitOutcome]) -> bool:
    """Return True if a gain is proven with an error of 0.2 after one of four audits."""
    for audit in range(1, 5):
        look = [unit for unit in units if unit.audit <= audit]
        if log_e_value(unit_differences(look).values) >= np.log(1 / 0.2):
            return True
    return False
