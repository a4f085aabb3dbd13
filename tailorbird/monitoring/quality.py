"""Quality on labelled answers: the champion's accuracy or, for chat, its mean score, and the change
per group.

A score from 0 to 1 varies at most as much as a share of right answers with the same mean (the
variance is at most m (1 - m)). So Wilson's and Newcombe's intervals and the tests of two
proportions are valid for mean scores, and conservative.

Only audits (labels of a random sample) are used for decisions. Feedback is biased: clients mostly
give it on wrong answers, so it underestimates any champion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.statistics.paired import wilson_interval
from tailorbird.monitoring.day_variance import effective_rows
from tailorbird.monitoring.traffic import ARMS, CHAMPION, Outcomes, Traffic

ALL = "all requests"
"""(chat) Group of all answers."""
OTHERS = "(others)"
"""Group of all values that are not in the reference. Clients may send any value, even a person's
name, so reports only contain values of the reference."""
MAX_GROUP_VALUES = 20  # per column, the most common values of the reference


@dataclass(frozen=True)
class Quality:
    """The champion's accuracy, or mean score, on labelled answers."""

    answers: int
    labelled: int
    right: float  # right answers; for chat, the sum of the scores
    interval: tuple[float, float]
    """Wilson interval of the accuracy for the effective rows; (0, 1) without labels."""

    @property
    def accuracy(self) -> float | None:
        if self.labelled:
            return self.right / self.labelled
        return None

    @property
    def coverage(self) -> float:
        """The share of answers with a label."""
        if self.answers:
            return self.labelled / self.answers
        return 0.0


NO_ANSWERS = Quality(answers=0, labelled=0, right=0, interval=(0.0, 1.0))


@dataclass(frozen=True)
class GroupAccuracy:
    """The numbers of rows and of right answers, or the sum of the scores, in a group."""

    n: int
    right: float
    effective: float  # number of independent rows with the same precision, at most n

    @classmethod
    def of(
        cls, scores: NDArray[np.float64], *, keys: NDArray[np.int64] | NDArray[np.uint64]
    ) -> "GroupAccuracy":
        """Return the accuracy over scores [N]; those with one key [N] are dependent and may all be
        equal."""
        return cls(len(scores), float(scores.sum()), effective_rows(keys))

    @property
    def effective_right(self) -> float:
        if self.n:
            return self.right / self.n * self.effective
        return 0.0


def group_accuracies(
    scores: NDArray[np.float64],
    *,
    groups: Mapping[str, Sequence[str]],
    keys: NDArray[np.int64] | NDArray[np.uint64],
) -> dict[str, GroupAccuracy]:
    """Return the accuracy in each group, `column = value`, of scores [N] whose values are given by
    column; see `of`."""
    accuracies = {}
    for column, values in groups.items():
        for value in sorted(set(values)):
            mask = np.array([row_value == value for row_value in values])
            accuracies[f"{column} = {value}"] = GroupAccuracy.of(scores[mask], keys=keys[mask])
    return accuracies


def quality(
    traffic: Traffic, *, champion: str, alpha: float, audited: bool, by_person: bool = False
) -> Quality:
    """Return the champion's accuracy on audited answers, or on answers with feedback, a biased
    sample.

    For chat, return the mean of the metric or, `by_person`, of the scores that people gave.
    """
    answers = traffic.num_rows_of(CHAMPION, champion)
    outcomes = traffic.outcomes
    rows = _labelled_rows(outcomes, CHAMPION, audited=audited)
    rows = rows[outcomes.by_person[rows] == by_person]

    labelled = GroupAccuracy.of(outcomes.scores[rows], keys=outcomes.requests[rows])
    interval = (0.0, 1.0)
    if labelled.n:
        interval = wilson_interval(labelled.effective_right, n=labelled.effective, alpha=alpha)
    return Quality(answers=answers, labelled=labelled.n, right=labelled.right, interval=interval)


def fixed_groups(
    reference: Mapping[str, GroupAccuracy], *, columns: Sequence[str]
) -> tuple[str, ...]:
    """Return the names, `column = value`, of the groups to compare: the most common values of the
    reference per column.

    They are fixed before any traffic, so the number of hypotheses does not depend on it.
    """
    groups: list[str] = []
    by_size = sorted(reference, key=lambda name: (-reference[name].n, name))
    for column in columns:
        groups += sorted(
            [name for name in by_size if name.startswith(f"{column} = ")][:MAX_GROUP_VALUES]
        )
    return tuple(groups)


def group_masks(
    outcomes: Outcomes, *, columns: Sequence[str], fixed: Sequence[str]
) -> dict[str, NDArray[np.bool_]]:
    """Return masks [F] of the rows in each fixed group, and in the group of other values, `column =
    (others)`."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for index, column in enumerate(columns):
        codes = {name: code for code, name in enumerate(fixed) if name.startswith(f"{column} = ")}
        names = (f"{column} = {values[index]}" for values in outcomes.groups)
        row_codes = np.array([codes.get(name, -1) for name in names], np.int64)
        masks |= {name: row_codes == code for name, code in codes.items()}
        masks[f"{column} = {OTHERS}"] = row_codes == -1
    return masks


def group_gate(
    outcomes: Outcomes,
    *,
    columns: Sequence[str],
    reference: Mapping[str, GroupAccuracy],
    limits: SubgroupGateConfig,
    alpha: float,
) -> Gate:
    """Compare the accuracy of each group with the reference. The rows differ, so the comparison is
    unpaired.

    A group fails if its loss is proven at alpha divided by the number of groups, by the test and by
    the upper end of Newcombe's interval for two proportions. Unlike with paired rows, a likely loss
    never decides: between two samples of 100 rows, one change in four is three points or more by
    chance. A group passes if the lower end of the unadjusted interval is above -`max_loss`, and is
    not assessable otherwise. Answers to one request may all be equal, so tests and intervals use
    the effective number of rows. Rows with values that are not in the
    reference are counted, not compared. Scores that people gave are not compared, because the
    reference has scores of the metric.
    """
    fixed = fixed_groups(reference, columns=columns)
    masks = group_masks(outcomes, columns=columns, fixed=fixed)
    if ALL in reference:
        fixed = (ALL, *fixed)
        masks[ALL] = np.ones(len(outcomes), bool)

    is_compared = np.zeros(len(outcomes), bool)
    is_compared[audited_rows(outcomes, CHAMPION)] = True
    is_compared &= ~outcomes.by_person
    accuracies = {}
    for name, mask in masks.items():
        rows = mask & is_compared
        if rows.any():
            accuracies[name] = GroupAccuracy.of(outcomes.scores[rows], keys=outcomes.requests[rows])

    unknown = [f"{accuracies[name].n:,} of {name}" for name in accuracies if name not in fixed]
    note = f"labelled rows that were not compared: {', '.join(unknown)}" if unknown else ""
    known = {name: accuracies[name] for name in fixed if name in accuracies}
    if not known:
        return gate("groups", (), note=note or "no labelled answer belongs to a group")
    level = alpha / len(known)
    bounds = []
    for name, now in known.items():
        before = reference[name]
        interval = _interval(now, before, alpha=alpha)
        state = State.NOT_ASSESSABLE
        if interval[0] > -limits.margin:
            state = State.PASSES
        if _p_value(now, before) < level and _interval(now, before, alpha=level)[1] < 0:
            state = State.FAILS
        bound = Bound(
            what=f"change for {name}",
            estimate=now.right / now.n - before.right / before.n,
            interval=interval,
            limit=-limits.margin,
            n=now.n,
            state=state,
        )
        bounds.append(bound)
    return gate("groups", bounds, note=note)


def audited_rows(outcomes: Outcomes, arm: str) -> NDArray[np.int64]:
    """Return the indices of the arm's audited rows, without duplicates."""
    return _labelled_rows(outcomes, arm, audited=True)


def _labelled_rows(outcomes: Outcomes, arm: str, *, audited: bool) -> NDArray[np.int64]:
    """Return the indices of the arm's rows with a label of an audit, or of feedback, without
    duplicates."""
    is_chosen = (outcomes.audited == audited) & (outcomes.arms == ARMS.index(arm))
    rows = np.flatnonzero(is_chosen)
    return np.sort(rows[np.unique(outcomes.keys[rows], return_index=True)[1]])


def _p_value(now: GroupAccuracy, before: GroupAccuracy) -> float:
    if now.right / now.n == before.right / before.n:
        return 1.0
    return float(
        test_proportions_2indep(*_counts(now), *_counts(before), method="agresti-caffo").pvalue
    )


def _interval(now: GroupAccuracy, before: GroupAccuracy, *, alpha: float) -> tuple[float, float]:
    low, high = confint_proportions_2indep(
        *_counts(now), *_counts(before), method="newcomb", alpha=alpha
    )
    return float(low), float(high)


def _counts(accuracy: GroupAccuracy) -> tuple[float, float]:
    """Return the effective numbers of right answers and of rows."""
    return accuracy.effective_right, accuracy.effective
