"""Compare challenger and champion on audited answers, by unit: a subject, or a request without one.

A unit counts once in the whole experiment, with the first audit that has labels of its answers. Later audits do not
change it, so all decisions on a challenger are about one growing sequence of independent units.

A shadow answers the champion's texts, so each unit is compared with itself. Its missing answers have bounds: the score
is between 0 and 1. A canary has units of its own. They are compared with the control units: a random sample of the
champion's units, about as many as the canary has or, if the canary has more than half of the requests, all of them.
Each canary unit is matched at random with a control unit of the same hour, because requests of other hours may be
harder. Units without a match in their hour are matched within the day. In both arms, a unit belongs to the hour of its
first audited answer. A unit with answers in several arms counts in that of its first audit, and in the shadow if that
is one of them, so both kinds of differences are one sequence.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tailorbird.monitoring.quality import audited_rows, group_masks
from tailorbird.monitoring.sequential_test import UnitDifferences
from tailorbird.monitoring.traffic import CANARY, CHAMPION, HOUR_US, SHADOW, Outcomes
from tailorbird.registry.draws import CODES
from tailorbird.registry.versions import Frozen

PERIODS = (1, 24)  # hours within which units are matched, in order


class UnitOutcome(Frozen):
    """The audited answers of one unit on one day in one arm, for one combination of groups."""

    unit: int  # code
    is_subject: bool
    arm: str  # `champion`, `canary`, `shadow`
    audit: int  # number of the first audit with these answers
    hour: int  # of the first of these answers, since 1970
    groups: tuple[str, ...]  # groups of the reference
    answers: int
    right: float
    """Right answers or, for chat, the sum of the scores; for a shadow, minus the champion's to the same texts."""
    missing: int = 0  # of these, answers that the shadow failed to give; they count 0 in `right`


@dataclass(frozen=True)
class _Unit:
    """A unit with all of its answers in its first audit."""

    code: int
    is_subject: bool
    audit: int
    hour: int
    answers: int
    share: float  # of right answers, or the mean score; for a shadow, minus the champion's
    missing: float  # share of answers that the shadow failed to give
    num_missing: int


def control_share(canary: float | None) -> float:
    """Return the share of the champion's units that are control units, for a canary with this share of all units.

    Control units are those with a code below this share of all codes.
    """
    if canary is None:
        return 0.0
    return 1.0 if canary >= 0.5 else canary / (1 - canary)


def unit_outcomes(
    outcomes: Outcomes, *, columns: Sequence[str], fixed: Sequence[str], share: float
) -> tuple[UnitOutcome, ...]:
    """Return the audited answers of the day for the comparison with the challenger, summed by unit.

    `fixed` are the groups of the reference, and `share` is the share of control units among the champion's.
    """
    champion, canary, shadow = (audited_rows(outcomes, arm) for arm in (CHAMPION, CANARY, SHADOW))
    _, ours, theirs = np.intersect1d(outcomes.keys[champion], outcomes.keys[shadow], return_indices=True)
    difference = outcomes.scores[shadow[theirs]] - outcomes.scores[champion[ours]]
    control = champion[outcomes.units[champion].astype(np.float64) < share * CODES]
    masks = group_masks(outcomes, columns=columns, fixed=fixed)
    sums: dict[tuple[str, int, int, tuple[str, ...]], UnitOutcome] = {}
    columns_of_rows = (outcomes.units, outcomes.is_subject, outcomes.audits, outcomes.at // HOUR_US, outcomes.missing)
    for arm, rows, right in (
        (SHADOW, shadow[theirs], difference),
        (CANARY, canary, outcomes.scores[canary]),
        (CHAMPION, control, outcomes.scores[control]),
    ):
        of_rows = zip(
            rows.tolist(), right.tolist(), *(column[rows].tolist() for column in columns_of_rows), strict=True
        )
        for row, value, unit, is_subject, audit, hour, missing in of_rows:
            outcome = UnitOutcome(
                unit=unit,
                is_subject=is_subject,
                arm=arm,
                audit=audit,
                hour=hour,
                groups=tuple(name for name in fixed if masks[name][row]),
                answers=1,
                right=value,
                missing=int(missing),
            )
            key = (arm, outcome.unit, outcome.audit, outcome.groups)
            sums[key] = _sum(sums[key], outcome) if key in sums else outcome
    return tuple(sums[key] for key in sorted(sums))


def _sum(first: UnitOutcome, second: UnitOutcome) -> UnitOutcome:
    answers, right = first.answers + second.answers, first.right + second.right
    hour, missing = min(first.hour, second.hour), first.missing + second.missing
    return first.model_copy(update={"hour": hour, "answers": answers, "right": right, "missing": missing})


def unit_differences(outcomes: Sequence[UnitOutcome], *, group: str | None = None) -> UnitDifferences:
    """Return the differences between challenger and champion by unit, overall or in a group.

    The experiment begins in the hour of the canary's first answer: earlier answers of control units are ignored.
    """
    start = min((outcome.hour for outcome in outcomes if outcome.arm == CANARY), default=None)
    by_arm: dict[str, list[UnitOutcome]] = defaultdict(list)
    for outcome in outcomes:
        before = outcome.arm == CHAMPION and (start is None or outcome.hour < start)
        if not before and (group is None or group in outcome.groups):
            by_arm[outcome.arm].append(outcome)
    shadow, canary, control = (_units(by_arm[arm]) for arm in (SHADOW, CANARY, CHAMPION))
    mirrored = [unit for unit in shadow.values() if not _is_in_earlier_audit(unit, canary, control)]
    pairs = _match(_without(canary, shadow, control), _without(control, shadow, canary))
    values = [unit.share for unit in mirrored] + [ours.share - theirs.share for ours, theirs in pairs]
    units = [*mirrored, *(ours for ours, _ in pairs)]
    return UnitDifferences(
        np.array(values, np.float64),
        missing=np.array([unit.missing for unit in units], np.float64),
        num_missing=sum(unit.num_missing for unit in units),
        num_subjects=sum(unit.is_subject for unit in units),
        num_answers=sum(unit.answers for unit in units),
        matched=bool(pairs),
    )


def _units(outcomes: Sequence[UnitOutcome]) -> dict[int, _Unit]:
    """Return the units by code, each with its answers in its first audit."""
    first: dict[int, int] = {}
    for outcome in outcomes:
        first[outcome.unit] = min(outcome.audit, first.get(outcome.unit, outcome.audit))
    sums: dict[int, UnitOutcome] = {}
    for outcome in outcomes:
        if outcome.audit == first[outcome.unit]:
            sums[outcome.unit] = _sum(sums[outcome.unit], outcome) if outcome.unit in sums else outcome
    return {
        code: _Unit(
            code,
            summed.is_subject,
            summed.audit,
            summed.hour,
            summed.answers,
            summed.right / summed.answers,
            summed.missing / summed.answers,
            summed.missing,
        )
        for code, summed in sums.items()
    }


def _is_in_earlier_audit(unit: _Unit, *arms: dict[int, _Unit]) -> bool:
    return any(unit.code in arm and arm[unit.code].audit < unit.audit for arm in arms)


def _without(units: dict[int, _Unit], shadow: dict[int, _Unit], other: dict[int, _Unit]) -> list[_Unit]:
    """Return the units whose first audit is before that in the shadow and first answer before that in the other arm."""
    return [
        unit
        for code, unit in units.items()
        if (code not in shadow or unit.audit < shadow[code].audit)
        and (code not in other or (unit.audit, unit.hour) < (other[code].audit, other[code].hour))
    ]


def _match(canary: Sequence[_Unit], control: Sequence[_Unit]) -> list[tuple[_Unit, _Unit]]:
    """Return pairs of a canary and a control unit with the same first audit and hour, then with the same day.

    Units are paired in order of their codes, so the pairs are random.
    """
    pairs: list[tuple[_Unit, _Unit]] = []
    left = [sorted(units, key=lambda unit: unit.code) for units in (canary, control)]
    for period in PERIODS:
        groups: dict[tuple[int, int], tuple[list[_Unit], list[_Unit]]] = defaultdict(lambda: ([], []))
        for arm, units in enumerate(left):
            for unit in units:
                groups[unit.audit, unit.hour // period][arm].append(unit)
        pairs += [pair for group in groups.values() for pair in zip(*group, strict=False)]
        matched = {unit.code for pair in pairs for unit in pair}
        left = [[unit for unit in units if unit.code not in matched] for units in left]
    return pairs
