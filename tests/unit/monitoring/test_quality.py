from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.data.rows import NO_GROUP
from tailorbird.evaluation.gates.base import State
from tailorbird.monitoring.log_reader import read_labels, read_traffic
from tailorbird.monitoring.quality import (
    GroupAccuracy,
    challenger_group_gate,
    challenger_pairs,
    feedback_as_audit,
    fixed_groups,
    group_gate,
    group_masks,
    num_with_subject,
    paired_by_order,
    quality,
)
from tailorbird.monitoring.sequential_test import Decision, Pairs, decide_challenger
from tailorbird.monitoring.traffic import ARMS, AnswerSample, Outcomes, Traffic, WatchedVersions

LIMITS, ALPHA = SubgroupGateConfig(), 0.05
SEXES = ("sex = f", "sex = m")


def outcomes(*rows: tuple[int, str, bool, str], audited: bool = True, has_subject: bool = False) -> Outcomes:
    """Return outcomes from rows of (key, arm, right, sex) in order of time."""
    return Outcomes(
        np.array([row[0] for row in rows], np.uint64),
        np.array([ARMS.index(row[1]) for row in rows], np.uint8),
        np.arange(len(rows)),
        np.array([row[2] for row in rows], bool),
        np.full(len(rows), audited),
        tuple((row[3],) for row in rows),
        has_subject=np.full(len(rows), has_subject),
    )


def of_champion(right: int, wrong: int, sex: str, *, first: int = 0) -> list[tuple[int, str, bool, str]]:
    return [(first + number, "champion", number < right, sex) for number in range(right + wrong)]


def test_accuracy_has_an_interval_and_the_share_of_labelled_answers() -> None:
    labelled = outcomes(*of_champion(80, 20, "f"), audited=False)
    sample = AnswerSample(
        np.arange(4, dtype=np.uint64), ("a",) * 4, np.array([1, 1, 0.5, 0.5], np.float32), (None,) * 4
    )
    traffic = Traffic(1000, {("champion", "d"): 1000}, without_class=500, outcomes=labelled, sample=sample)
    result = quality(traffic, champion="d", alpha=ALPHA, audited=False)
    # answers without a class have no confidence
    assert (result.accuracy, result.coverage, result.estimate) == (0.8, 0.1, 0.75)
    assert result.interval == pytest.approx((0.711, 0.867), abs=1e-3)  # Wilson interval for 80 of 100
    audit = quality(traffic, champion="d", alpha=ALPHA, audited=True)
    assert (audit.accuracy, audit.interval, audit.estimate) == (None, (0.0, 1.0), 0.75)
    assert quality(Traffic(5, {("champion", "d"): 5}), champion="d", alpha=ALPHA, audited=True).estimate is None


def test_a_duplicate_row_of_the_log_counts_once() -> None:
    labelled = outcomes(*of_champion(8, 2, "f"), *of_champion(8, 0, "f"))
    result = quality(Traffic(20, {("champion", "d"): 20}, outcomes=labelled), champion="d", alpha=ALPHA, audited=True)
    assert (result.labelled, result.right) == (10, 8)
    gate = group_gate(
        labelled, columns=("sex",), reference={"sex = f": GroupAccuracy(100, 80)}, limits=LIMITS, alpha=ALPHA
    )
    assert gate.bounds[0].n == 10


def test_feedback_fails_no_group_and_is_only_displayed() -> None:
    labelled = outcomes(*of_champion(0, 200, "f"), audited=False)
    reference = {"sex = f": GroupAccuracy(1000, 800)}
    gate = group_gate(labelled, columns=("sex",), reference=reference, limits=LIMITS, alpha=ALPHA)
    assert (gate.state, gate.bounds) == (State.NOT_ASSESSABLE, ())
    by_feedback = group_gate(
        feedback_as_audit(labelled), columns=("sex",), reference=reference, limits=LIMITS, alpha=ALPHA
    )
    assert (by_feedback.state, by_feedback.bounds[0].n) == (State.FAILS, 200)
    both = replace(outcomes(*of_champion(800, 200, "f"), *of_champion(0, 200, "f", first=5000)))
    both = replace(both, audited=np.arange(1200) < 1000)
    gate = group_gate(both, columns=("sex",), reference=reference, limits=LIMITS, alpha=ALPHA)
    assert (gate.state, gate.bounds[0].n) == (State.NOT_ASSESSABLE, 1000)


def test_a_group_with_a_proven_loss_fails_and_another_passes() -> None:
    labelled = outcomes(*of_champion(600, 400, "f"), *of_champion(1900, 100, "m", first=1000))
    reference = {"sex = f": GroupAccuracy(1000, 800), "sex = m": GroupAccuracy(1000, 940)}
    gate = group_gate(labelled, columns=("sex",), reference=reference, limits=LIMITS, alpha=ALPHA)
    states = {bound.what: bound.state for bound in gate.bounds}
    assert states == {"change for sex = f": State.FAILS, "change for sex = m": State.PASSES}
    assert gate.bounds[0].estimate == pytest.approx(-0.2)


def test_few_labels_of_a_group_are_not_assessable() -> None:
    labelled = outcomes(*of_champion(5, 2, "f"))
    gate = group_gate(
        labelled, columns=("sex",), reference={"sex = f": GroupAccuracy(100, 80)}, limits=LIMITS, alpha=ALPHA
    )
    assert [bound.state for bound in gate.bounds] == [State.NOT_ASSESSABLE]


def test_unchanged_groups_fail_no_more_often_than_alpha() -> None:
    chance, failed = np.random.default_rng(5), 0
    for _ in range(40):
        rows = []
        for index, sex in enumerate("ab"):
            right = int(chance.binomial(150, 0.8))
            rows += of_champion(right, 150 - right, sex, first=1000 * index)
        reference = {f"sex = {sex}": GroupAccuracy(200, int(chance.binomial(200, 0.8))) for sex in "ab"}
        gate = group_gate(outcomes(*rows), columns=("sex",), reference=reference, limits=LIMITS, alpha=ALPHA)
        failed += gate.state is State.FAILS
    assert failed / 40 <= ALPHA + 0.08


def test_group_values_outside_the_reference_are_counted_but_not_printed() -> None:
    labelled = outcomes(*of_champion(5, 5, "Jane Doe"), *of_champion(5, 5, "f", first=100))
    gate = group_gate(
        labelled, columns=("sex",), reference={"sex = f": GroupAccuracy(10, 5)}, limits=LIMITS, alpha=ALPHA
    )
    assert [bound.what for bound in gate.bounds] == ["change for sex = f"]
    assert gate.note == "labelled rows that were not compared: 10 of sex = (others)"
    nothing = group_gate(Outcomes(), columns=("sex",), reference={}, limits=LIMITS, alpha=ALPHA)
    assert (nothing.state, nothing.note) == (State.NOT_ASSESSABLE, "no labelled answer belongs to a group")
    alone = group_gate(
        labelled, columns=("sex",), reference={"sex = m": GroupAccuracy(10, 5)}, limits=LIMITS, alpha=ALPHA
    )
    assert (alone.bounds, alone.note) == ((), "labelled rows that were not compared: 20 of sex = (others)")


def test_rows_without_a_value_form_the_same_group_as_in_the_reference() -> None:
    labelled = outcomes(*of_champion(5, 5, NO_GROUP))
    gate = group_gate(
        labelled, columns=("sex",), reference={"sex = (none)": GroupAccuracy(10, 5)}, limits=LIMITS, alpha=ALPHA
    )
    assert [(bound.what, bound.n) for bound in gate.bounds] == [("change for sex = (none)", 10)]


def test_groups_are_the_twenty_most_common_values_of_the_reference() -> None:
    reference = {f"ward = {number:02}": GroupAccuracy(100 - number, 50) for number in range(30)} | {
        "sex = f": GroupAccuracy(5, 5)
    }
    fixed = fixed_groups(reference, columns=("sex", "ward"))
    assert fixed == ("sex = f", *(f"ward = {number:02}" for number in range(20)))
    rows = [(number, "champion", True, f"{number % 40:02}") for number in range(400)]
    masks = group_masks(outcomes(*rows), columns=("ward",), fixed=fixed_groups(reference, columns=("ward",)))
    assert len(masks) == 21
    assert int(masks["ward = (others)"].sum()) == 200
    assert sum(int(mask.sum()) for mask in masks.values()) == 400


def test_the_number_of_a_challengers_groups_does_not_depend_on_traffic() -> None:
    for labelled in (Outcomes(), outcomes((1, "champion", True, "x"), (1, "shadow", False, "x"))):
        pairs, groups, tables = challenger_pairs(labelled, columns=("sex",), fixed=SEXES)
        assert groups == {"sex = f": Pairs(0, 0, 0), "sex = m": Pairs(0, 0, 0)}
        assert pairs.num_pairs == len(labelled) / 2
        assert tables == []
        assert challenger_group_gate(groups, tables, limits=LIMITS, alpha=ALPHA).bounds == ()


def test_feedback_on_wrong_answers_of_the_champion_does_not_promote_an_equal_shadow() -> None:
    """Both are right in 8 of 10, independently; feedback is given only if the champion is wrong."""
    chance = np.random.default_rng(3)
    champion, shadow = chance.random((2, 2000)) < 0.8
    rows = [
        (key, arm, bool(right[key]), "f")
        for key in range(2000)
        for arm, right in (("champion", champion), ("shadow", shadow))
        if not champion[key]
    ]
    complained = outcomes(*rows, audited=False)
    pairs, groups, _ = challenger_pairs(complained, columns=("sex",), fixed=SEXES)
    assert pairs == Pairs(0, 0, 0)
    by_feedback, _, _ = challenger_pairs(feedback_as_audit(complained), columns=("sex",), fixed=SEXES)
    assert (
        decide_challenger(by_feedback, groups=groups, alpha=ALPHA).decision is Decision.PROMOTE
    )  # so feedback must not be used


def test_the_audit_label_of_a_champions_answer_also_applies_to_its_shadow(tmp_path: Path) -> None:
    at = datetime(2026, 3, 1, tzinfo=UTC)
    both = [
        {"request_id": f"r{number}", "row": 0, "at": at, "digest": arm, "arm": arm, "label": label, "score": 0.9}
        | {"attributes": '{"sex": "f"}', "text": None, "subject": "s" * number or None}
        for number in range(3)
        for arm, label in (("champion", "a"), ("shadow", "b"))
    ]
    feedback_rows = [{"request_id": f"r{number}", "row": 0, "at": at, "label": "b"} for number in range(3)]
    for name, rows in (("answers", both), ("feedback", feedback_rows), ("audit", feedback_rows[:2])):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    answers, feedback, audit = ((tmp_path / f"{name}.parquet").as_uri() for name in ("answers", "feedback", "audit"))
    labels = read_labels([feedback], audits=[audit])
    result = read_traffic([answers], WatchedVersions("champion", "shadow", ("sex",)), labels=labels).outcomes
    assert challenger_pairs(result, columns=("sex",), fixed=SEXES)[0] == Pairs(2, 0, 2)
    assert challenger_pairs(feedback_as_audit(result), columns=("sex",), fixed=SEXES)[0] == Pairs(1, 0, 1)
    assert result.has_subject.tolist() == [False, False, True, True, True, True]


def test_a_shadow_is_paired_with_the_champion_on_the_same_text() -> None:
    labelled = outcomes(
        (1, "champion", True, "f"),
        (1, "shadow", False, "f"),
        (2, "shadow", True, "m"),
        (2, "champion", False, "m"),
        (3, "champion", True, "m"),
        (4, "shadow", True, "m"),
        (1, "shadow", False, "f"),  # a duplicate row
    )
    pairs, groups, _ = challenger_pairs(labelled, columns=("sex",), fixed=SEXES)
    assert pairs == Pairs(only_challenger_right=1, only_champion_right=1, num_pairs=2)
    assert groups == {"sex = f": Pairs(0, 1, 1), "sex = m": Pairs(1, 0, 1)}


def test_answers_of_a_canary_are_paired_with_the_champions_in_order_of_time() -> None:
    labelled = outcomes(
        (1, "champion", True, "f"),
        (2, "champion", False, "f"),
        (3, "canary", False, "f"),
        (4, "canary", True, "m"),
        (5, "canary", True, "m"),
    )
    pairs, _, _ = challenger_pairs(labelled, columns=("sex",), fixed=SEXES)
    assert pairs == Pairs(only_challenger_right=1, only_champion_right=1, num_pairs=2)
    backwards = replace(labelled, at=labelled.at[::-1].copy())
    assert challenger_pairs(backwards, columns=("sex",), fixed=SEXES)[0] == Pairs(
        only_challenger_right=1, only_champion_right=0, num_pairs=2
    )


def test_answers_with_a_subject_are_paired_for_a_shadow_but_not_for_a_canary() -> None:
    rows = [
        (1, "champion", True, "f"),
        (2, "champion", False, "f"),
        (3, "canary", False, "f"),
        (4, "canary", True, "f"),
    ]
    labelled = outcomes(*rows, has_subject=True)
    pairs, groups, tables = challenger_pairs(labelled, columns=("sex",), fixed=SEXES)
    assert (pairs, groups["sex = f"], tables) == (Pairs(0, 0, 0), Pairs(0, 0, 0), [])
    assert num_with_subject(labelled) == 2
    mixed = replace(labelled, has_subject=np.array([True, False, True, False]))
    assert challenger_pairs(mixed, columns=("sex",), fixed=SEXES)[0] == Pairs(
        1, 0, 1
    )  # only the answers without a subject
    shadow = outcomes((1, "champion", True, "f"), (1, "shadow", False, "f"), has_subject=True)
    assert challenger_pairs(shadow, columns=("sex",), fixed=SEXES)[0] == Pairs(0, 1, 1)
    assert num_with_subject(shadow) == 0


def test_in_a_group_answers_of_a_canary_are_paired_within_the_group() -> None:
    rows = []
    for number in range(200):  # both are right in half of f and all of m; the champion gets only m at first
        rows.append((number, "champion", number < 100 or number % 2 == 0, "m" if number < 100 else "f"))
        rows.append((1000 + number, "canary", number >= 100 or number % 2 == 0, "f" if number < 100 else "m"))
    labelled = outcomes(*rows)
    pairs, groups, _ = challenger_pairs(labelled, columns=("sex",), fixed=SEXES)
    assert pairs == Pairs(50, 50, 200)
    assert groups == {"sex = f": Pairs(0, 0, 100), "sex = m": Pairs(0, 0, 100)}
    assert paired_by_order(labelled)
    assert not paired_by_order(feedback_as_audit(labelled))
    assert not paired_by_order(outcomes((1, "champion", True, "f"), (1, "shadow", True, "f")))


def test_without_labelled_pairs_there_are_no_counts() -> None:
    pairs, groups, tables = challenger_pairs(outcomes((1, "champion", True, "f")), columns=("sex",), fixed=SEXES)
    assert pairs == Pairs(0, 0, 0)
    assert challenger_group_gate(groups, tables, limits=LIMITS, alpha=ALPHA).state is State.NOT_ASSESSABLE


def test_the_group_gate_of_a_challenger_equals_that_of_the_verdict() -> None:
    rows = [row for key in range(300) for row in ((key, "champion", True, "f"), (key, "shadow", key % 10 > 0, "f"))]
    _, groups, tables = challenger_pairs(outcomes(*rows), columns=("sex",), fixed=SEXES)
    gate = challenger_group_gate(groups, tables, limits=LIMITS, alpha=ALPHA)
    assert gate.state is State.FAILS
    assert gate.bounds[0].what == "change for sex = f"
