"""From labelled answers: how often the champion is right, in which groups it is worse now, and the trial's pairs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

from evaluation.gates import Bound, Gate, State, gate
from evaluation.groups import group_bound, proven_harmed
from evaluation.metrics import PairedCounts, holm, wilson_interval
from monitoring.betting import Pairs
from monitoring.traffic import ARMS, CANARY, CHAMPION, SHADOW, Outcomes, Traffic
from recipes.schema import GroupsGate

OTHERS = "others"
GROUP_VALUES = 20
"""Of a column, the most common ones; the rest is one group."""


@dataclass(frozen=True)
class Quality:
    """How often the champion was right on the answers whose labels are known."""

    answers: int
    labelled: int
    right: int
    interval: tuple[float, float]
    """Wilson's, of the accuracy; (0, 1) without labels."""
    estimate: float | None
    """Mean confidence of all answers: what the accuracy would be if the champion were calibrated on this traffic. It
    is no measurement, and nothing acts on it."""

    @property
    def accuracy(self) -> float | None:
        """None without labels."""
        return self.right / self.labelled if self.labelled else None

    @property
    def coverage(self) -> float:
        """Share of the answers whose label is known."""
        return self.labelled / self.answers if self.answers else 0.0


@dataclass(frozen=True)
class Before:
    """How often the champion was right on the rows that it was chosen on."""

    n: int
    right: int


def quality(traffic: Traffic, *, champion: str, alpha: float, audited: bool) -> Quality:
    """The champion's accuracy on its labelled answers: on those drawn by lot for an audit, or on those that got
    feedback, which may be the odd ones."""
    answers = traffic.num_of(CHAMPION, champion)
    right = traffic.outcomes.right[_of(traffic.outcomes, CHAMPION) & (traffic.outcomes.audited == audited)]
    labelled, num_right = len(right), int(right.sum())
    interval = wilson_interval(num_right, n=labelled, alpha=alpha) if labelled else (0.0, 1.0)
    estimate = traffic.confidence_sum / answers if answers else None
    return Quality(answers, labelled, num_right, interval, estimate)


def groups_of(outcomes: Outcomes, columns: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Masks [F] of the rows of each group, `column = value`; values beyond the most common ones are `others`."""
    found: dict[str, NDArray[np.bool_]] = {}
    for place, column in enumerate(columns):
        values = np.array([row[place] for row in outcomes.groups], dtype=object)
        counts = Counter(values.tolist())
        common = [name for name, _ in counts.most_common(GROUP_VALUES)]
        for name in sorted(common):
            found[f"{column} = {name}"] = values == name
        if len(counts) > GROUP_VALUES:
            found[f"{column} = {OTHERS}"] = ~np.isin(values.astype(str), common)
    return found


def groups_now(
    outcomes: Outcomes, *, columns: Sequence[str], before: dict[str, Before], limits: GroupsGate, alpha: float
) -> Gate:
    """Whether a group is served worse than on the rows that the champion was chosen on; other rows, so not paired.

    A group fails if its loss is proven (Holm over the groups, and Newcombe's upper end for two proportions at its level
    under 0). No point decides, as one may of paired rows: of two samples of 100 rows one change in four is three points
    or more by chance. It passes if the lower end of the unadjusted interval is over -`max_loss`, and is not assessable
    otherwise. Groups without rows before are left out.
    """
    ours = outcomes.right[_of(outcomes, CHAMPION)]
    masks = {name: mask[_of(outcomes, CHAMPION)] for name, mask in groups_of(outcomes, columns).items()}
    counts = {name: Before(int(mask.sum()), int(ours[mask].sum())) for name, mask in masks.items()}
    known = {name: now for name, now in counts.items() if now.n and name in before and before[name].n}
    if not known:
        return gate("groups", (), note="no labelled answer is of a group that the champion was chosen on")
    pairs = [(now, before[name]) for name, now in known.items()]
    p_values = [_p_value(now, than) for now, than in pairs]
    adjusted = holm(p_values)
    ordered = sorted(p_values)
    bounds = []
    for (now, than), name, p_value, holms in zip(pairs, known, p_values, adjusted, strict=True):
        level = alpha / (len(pairs) - ordered.index(p_value))
        harmed = holms < alpha and _interval(now, than, alpha=level)[1] < 0
        bounds.append(_bound(name, now=now, than=than, harmed=harmed, limits=limits, alpha=alpha))
    left_out = sorted(set(counts) - set(known))
    return gate("groups", bounds, note=f"not compared, for they had no row before: {', '.join(left_out) or 'none'}")


def trial_pairs(outcomes: Outcomes, *, columns: Sequence[str]) -> tuple[Pairs, dict[str, Pairs], list[PairedCounts]]:
    """Labelled pairs of champion and trial: overall, by group, and by group as the verdict's group gate reads them.

    A shadow answers the same text as the champion, which is a pair. A canary answers others: its n-th labelled answer
    is paired with the champion's n-th, in the order of time.
    """
    first = _first_of_each(outcomes)
    champion, shadow, canary = (np.flatnonzero(first & _of(outcomes, arm)) for arm in (CHAMPION, SHADOW, CANARY))
    _, ours, theirs = np.intersect1d(outcomes.keys[champion], outcomes.keys[shadow], return_indices=True)
    pairs = [np.stack([champion[ours], shadow[theirs]])]
    if len(canary):
        left = np.setdiff1d(champion, champion[ours])
        streams = [rows[np.argsort(outcomes.at[rows], kind="stable")] for rows in (left, canary)]
        size = min(map(len, streams))
        pairs.append(np.stack([rows[:size] for rows in streams]))
    rows = np.concatenate(pairs, axis=1)
    masks = {name: mask[rows[1]] for name, mask in groups_of(outcomes, columns).items()}
    tables = {name: _paired(outcomes, rows[:, mask]) for name, mask in masks.items() if mask.any()}
    overall = _paired(outcomes, rows) if rows.size else None
    return _pairs(overall), {name: _pairs(table) for name, table in tables.items()}, list(tables.values())


def trial_groups(pairs: dict[str, Pairs], tables: Sequence[PairedCounts], *, limits: GroupsGate, alpha: float) -> Gate:
    """The verdict's own reading of the groups, on the trial's labelled pairs."""
    if not pairs:
        return gate("groups", (), note="no labelled pair is of a group")
    harmed = proven_harmed(tables, alpha=alpha)
    bounds = [
        group_bound(name, counts=table, harmed=harm, limits=limits, alpha=alpha)
        for name, table, harm in zip(pairs, tables, harmed, strict=True)
    ]
    return gate("groups", bounds)


def _of(outcomes: Outcomes, arm: str) -> NDArray[np.bool_]:
    return np.asarray(outcomes.arms == ARMS.index(arm))


def _first_of_each(outcomes: Outcomes) -> NDArray[np.bool_]:
    """A row that stands twice in the log counts once."""
    named = np.rec.fromarrays([outcomes.keys, outcomes.arms])
    first = np.zeros(len(outcomes), bool)
    first[np.unique(named, return_index=True)[1]] = True
    return first


def _paired(outcomes: Outcomes, rows: NDArray[np.int64]) -> PairedCounts:
    champion, trial = outcomes.right[rows]
    return PairedCounts(
        int((champion & trial).sum()),
        int((~champion & trial).sum()),
        int((champion & ~trial).sum()),
        int((~champion & ~trial).sum()),
    )


def _pairs(table: PairedCounts | None) -> Pairs:
    return Pairs(0, 0, 0) if table is None else Pairs(table.only_candidate_right, table.only_other_right, table.n)


def _p_value(now: Before, than: Before) -> float:
    if now.right / now.n == than.right / than.n:
        return 1.0
    return float(test_proportions_2indep(now.right, now.n, than.right, than.n, method="agresti-caffo").pvalue)


def _interval(now: Before, than: Before, *, alpha: float) -> tuple[float, float]:
    low, high = confint_proportions_2indep(now.right, now.n, than.right, than.n, method="newcomb", alpha=alpha)
    return float(low), float(high)


def _bound(name: str, *, now: Before, than: Before, harmed: bool, limits: GroupsGate, alpha: float) -> Bound:
    change, interval = now.right / now.n - than.right / than.n, _interval(now, than, alpha=alpha)
    unharmed = State.PASSES if interval[0] > -limits.max_loss else State.NOT_ASSESSABLE
    state = State.FAILS if harmed else unharmed
    return Bound(f"change in {name}", change, interval, -limits.max_loss, now.n, state)
