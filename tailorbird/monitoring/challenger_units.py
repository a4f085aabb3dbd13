"""Compare challenger and champion on audited answers, by unit: a subject, or a request without one.

A unit counts once in the whole experiment, in one arm. Later audits change no earlier comparison,
so all decisions on a challenger are about one growing sequence of independent units.

A shadow answers the champion's texts, so each unit is compared with itself, with all answers of its
first audit. Its missing answers have bounds: the score is between 0 and 1.

A canary has units of its own. They are compared with the control units: a random sample of the
champion's units, about as many as the canary has or, if the canary has more than half of the
requests, all of them. Only answers of the same hour are compared: requests change during a day, and
so may the canary's share of them, because it was changed or because the canary fails under load. In
each audit and hour, the units that have not counted yet are matched at random. If one arm has more
units, each unit of the other is matched with several, whose mean counts.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from tailorbird.monitoring.quality import audited_rows, group_masks
from tailorbird.monitoring.sequential_test import UnitDifferences
from tailorbird.monitoring.traffic import CANARY, CHAMPION, HOUR_US, SHADOW, Outcomes
from tailorbird.registry.draws import CODES
from tailorbird.registry.versions import Frozen

ALL_HOURS = -1
"""Before the hours of an audit, so a unit in a shadow and a canary counts in the shadow."""


class UnitOutcome(Frozen):
    """The audited answers of one unit in one hour in one arm, for one combination of groups."""

    unit: int  # code
    is_subject: bool
    arm: str  # `champion`, `canary`, `shadow`
    audit: int  # number of the first audit with these answers
    hour: int  # since 1970; `ALL_HOURS` for a shadow, whose answers count together
    groups: tuple[str, ...]  # groups of the reference
    answers: int
    right: float
    """Right answers or, for chat, the sum of the scores; for a shadow, minus the champion's to the
    same texts."""
    missing: int = 0  # of these, answers that the shadow failed to give; they count 0 in `right`

    @property
    def share(self) -> float:
        """The share of right answers, or the mean score."""
        return self.right / self.answers


def control_share(canary: float | None) -> float:
    """Return the share of the champion's units that are control units, for a canary with this share
    of all units.

    Control units are those with a code below this share of all codes.
    """
    if canary is None:
        return 0.0
    if canary >= 0.5:
        return 1.0
    return canary / (1 - canary)


def unit_outcomes(
    outcomes: Outcomes, *, columns: Sequence[str], fixed: Sequence[str], share: float
) -> tuple[UnitOutcome, ...]:
    """Return the audited answers of the day for the comparison with the challenger, summed by unit.

    `fixed` are the groups of the reference, and `share` is the share of control units among the
    champion's.
    """
    champion = audited_rows(outcomes, CHAMPION)
    canary = audited_rows(outcomes, CANARY)
    shadow = audited_rows(outcomes, SHADOW)
    _, in_champion, in_shadow = np.intersect1d(
        outcomes.keys[champion], outcomes.keys[shadow], return_indices=True
    )
    shadow = shadow[in_shadow]
    scores = outcomes.scores.copy()
    scores[shadow] -= outcomes.scores[champion[in_champion]]
    control = champion[outcomes.units[champion].astype(np.float64) < share * CODES]
    masks = group_masks(outcomes, columns=columns, fixed=fixed)

    answers = []
    for arm, rows in ((SHADOW, shadow), (CANARY, canary), (CHAMPION, control)):
        for row in rows.tolist():
            outcome = UnitOutcome(
                unit=int(outcomes.units[row]),
                is_subject=bool(outcomes.is_subject[row]),
                arm=arm,
                audit=int(outcomes.audits[row]),
                hour=ALL_HOURS if arm == SHADOW else int(outcomes.at[row] // HOUR_US),
                groups=tuple(name for name in fixed if masks[name][row]),
                answers=1,
                right=float(scores[row]),
                missing=int(outcomes.missing[row]),
            )
            answers.append(outcome)
    return tuple(_summed(answers, by=attrgetter("audit", "hour", "unit", "arm", "groups")))


def _summed(
    outcomes: Sequence[UnitOutcome], *, by: Callable[[UnitOutcome], Any]
) -> list[UnitOutcome]:
    """Return the sums of the outcomes with an equal key, in order of the keys."""
    return [_sum(list(equal)) for _, equal in groupby(sorted(outcomes, key=by), key=by)]


def _sum(outcomes: Sequence[UnitOutcome]) -> UnitOutcome:
    sums = {
        "answers": sum(outcome.answers for outcome in outcomes),
        "right": sum(outcome.right for outcome in outcomes),
        "missing": sum(outcome.missing for outcome in outcomes),
    }
    return outcomes[0].model_copy(update=sums)


def unit_differences(
    outcomes: Sequence[UnitOutcome], *, group: str | None = None
) -> UnitDifferences:
    """Return the differences between challenger and champion by unit, overall or in a group."""
    selected = [outcome for outcome in outcomes if group is None or group in outcome.groups]
    summed = _summed(selected, by=attrgetter("audit", "hour", "unit", "arm"))
    counted: set[int] = set()
    units: list[UnitOutcome] = []
    values: list[float] = []
    for _, in_hour in groupby(summed, key=attrgetter("audit", "hour")):
        new = [unit for unit in in_hour if unit.unit not in counted]
        shadow = [unit for unit in new if unit.arm == SHADOW]
        counted.update(unit.unit for unit in shadow)
        units += shadow
        values += [unit.share for unit in shadow]

        canary = [unit for unit in new if unit.arm == CANARY]
        control = [unit for unit in new if unit.arm == CHAMPION]
        for moved, matched in _matches(canary, control):
            counted.update(unit.unit for unit in (*moved, *matched))
            units.append(_sum(moved))
            values.append(_mean_share(moved) - _mean_share(matched))
    return UnitDifferences(
        np.array(values, np.float64),
        missing=np.array([unit.missing / unit.answers for unit in units], np.float64),
        num_missing=sum(unit.missing for unit in units),
        num_subjects=sum(unit.is_subject for unit in units),
        num_answers=sum(unit.answers for unit in units),
        matched=any(unit.arm == CANARY for unit in units),
    )


def _matches(
    canary: Sequence[UnitOutcome], control: Sequence[UnitOutcome]
) -> list[tuple[Sequence[UnitOutcome], Sequence[UnitOutcome]]]:
    """Return matches of units of one hour in order of their codes, so at random. All units of both
    arms are matched."""
    moved = {unit.unit for unit in canary}
    control = [unit for unit in control if unit.unit not in moved]
    num = min(len(canary), len(control))
    return [(canary[start::num], control[start::num]) for start in range(num)]


def _mean_share(units: Sequence[UnitOutcome]) -> float:
    return sum(unit.share for unit in units) / len(units)
