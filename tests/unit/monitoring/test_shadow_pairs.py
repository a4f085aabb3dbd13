"""Pairs of the answers of challenger and champion; a row is (key, arm, right, request, audit)."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, count

import numpy as np
import pytest

from tailorbird.evaluation.statistics.confidence_sequence import confidence_sequence
from tailorbird.monitoring.paired_decision import PairedDifferences
from tailorbird.monitoring.shadow_pairs import paired_differences, paired_outcomes
from tailorbird.monitoring.traffic import ARMS, Outcomes
from tests.unit.monitoring.log_task import outcomes

ALPHA = 0.05
Rows = list[tuple[int, str, bool, int, int]]
KEYS = count()


def one(arm: str, request: int, right: bool, *, audit: int = 1) -> Rows:
    """Return an answer to a text of its own."""
    return [(next(KEYS), arm, right, request, audit)]


def both(request: int, champion: bool, shadow: bool, *, audit: int = 1) -> Rows:
    """Return the answers of champion and shadow to one text."""
    key = next(KEYS)
    return [(key, "champion", champion, request, audit), (key, "shadow", shadow, request, audit)]


def logged(*parts: Rows, sexes: str = "f") -> Outcomes:
    rows = list(chain(*parts))
    keys, arms, right, requests, audits = zip(*rows, strict=True) if rows else ((),) * 5
    return outcomes(arms, right, keys=keys, requests=requests, audits=audits, sexes=sexes)


def compare(log: Outcomes, *, group: str | None = None) -> PairedDifferences:
    pairs = paired_outcomes(log, columns=("sex",), fixed=("sex = f", "sex = m"))
    return paired_differences(pairs, group=group)


def differences(*parts: Rows) -> list[float]:
    return sorted(compare(logged(*parts)).values.tolist())


def test_missing_answers_of_a_shadow_have_bounds() -> None:
    rows = [both(1, True, False), both(1, False, False), both(2, True, False)]
    log = logged(*rows, both(3, False, True))
    result = compare(replace(log, missing=np.arange(8) % 4 == 1))  # the first of requests 1 and 2
    assert result.values.tolist() == [-0.5, -1.0, 1.0]
    assert result.highest.tolist() == [0.0, 0.0, 1.0]
    assert (result.num_missing, result.num_answers) == (2, 4)


@pytest.mark.parametrize("lost", [False, True])
def test_missing_answers_prove_neither_a_gain_nor_a_loss(lost: bool) -> None:
    """The shadow answers as well as the champion, and either its wrong or its right answers are
    missing."""
    rows = [both(key, key % 4 < 2, key % 2 < 1) for key in range(400)]
    answered = [[row for row in pair if row[1] != "shadow" or row[2] != lost] for pair in rows]
    sign = -1 if lost else 1
    assert confidence_sequence(sign * compare(logged(*answered)).values, alpha=ALPHA)[0] > 0

    log = logged(*rows)
    missing = (log.arms == ARMS.index("shadow")) & (log.scores == lost)
    result = compare(replace(log, missing=missing, scores=np.where(missing, 0.0, log.scores)))
    low, high = result.interval(alpha=ALPHA)
    assert low < 0 < high


def test_a_request_counts_once_with_its_first_audit_in_any_order_of_the_log() -> None:
    first = both(1, False, True, audit=2)
    later = both(1, True, False, audit=3) + both(2, True, True, audit=3)
    assert differences(later, first) == differences(first, later) == [0.0, 1.0]


def test_only_texts_that_both_versions_answered_are_compared_and_duplicates_count_once() -> None:
    rows = both(1, True, False)
    assert differences(rows, one("champion", 2, True), one("shadow", 3, True), rows) == [-1.0]
    by_feedback = replace(logged(rows), audits=np.zeros(2, np.int32))
    assert len(compare(by_feedback)) == 0  # feedback is not a random sample
    assert differences() == []


def test_in_a_group_only_its_answers_are_compared() -> None:
    log = logged(both(1, False, True), both(1, True, False), sexes="ffmm")
    assert compare(log, group="sex = f").values.tolist() == [1.0]
    assert compare(log, group="sex = m").values.tolist() == [-1.0]
    assert compare(log).values.tolist() == [0.0]


def test_an_equal_challenger_is_not_promoted_if_requests_have_many_equal_answers() -> None:
    """All answers to a request are right, or all are wrong."""
    chance = np.random.default_rng(2)
    num_runs = 60
    promoted = 0
    for _ in range(num_runs):
        right = (chance.random((2, 100)) < 0.5).tolist()
        rows = [
            both(request, right[0][request], right[1][request], audit=1 + request // 25)
            for request in range(100)
            for _ in range(8)
        ]
        promoted += is_promoted(rows)
    assert promoted / num_runs <= 0.2


def is_promoted(rows: Sequence[Rows]) -> bool:
    """Return True if a gain is proven at alpha = 0.4 after one of four audits."""
    for audit in range(1, 5):
        look = logged(*(pair for pair in rows if pair[0][-1] <= audit))
        if compare(look).interval(alpha=0.4)[0] > 0:
            return True
    return False
