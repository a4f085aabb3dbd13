"""From labelled answers: how often the champion is right, in which groups it is worse now, and the trial's pairs.

Only labels of texts that were drawn by lot (audits) are compared. Feedback is given where an answer was wrong, of the
champion alone: it would find against any champion.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from statsmodels.stats.proportion import confint_proportions_2indep, test_proportions_2indep

from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import Bound, Gate, State, gate
from tailorbird.evaluation.gates.subgroups import group_bound, proven_harmed
from tailorbird.evaluation.statistics.paired import PairedCounts, holm, wilson_interval
from tailorbird.monitoring.log_reader import ARMS, CANARY, CHAMPION, Outcomes, Traffic
from tailorbird.monitoring.sequential_test import Pairs

OTHERS = "(others)"
"""Values that are not looked at apart, in parentheses as those of no group are. What clients state may be anything, a
person's name too: only values that the reference has are ever named."""
GROUP_VALUES = 20
"""Of a column, the reference's most common ones."""


@dataclass(frozen=True)
class Quality:
    """How often the champion was right on the answers whose labels are known."""

    answers: int
    labelled: int
    right: int
    interval: tuple[float, float]
    """Wilson's, of the accuracy; (0, 1) without labels."""
    estimate: float | None
    """Mean confidence of the sampled answers that have a class: what the accuracy would be if the champion were
    calibrated on this traffic. It is no measurement, and nothing acts on it."""

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


def by_feedback(outcomes: Outcomes) -> Outcomes:
    """What feedback tells, as if it were an audit: to be shown beside one, and never to be acted on."""
    return replace(outcomes, audited=~outcomes.audited)


def quality(traffic: Traffic, *, champion: str, alpha: float, audited: bool) -> Quality:
    """The champion's accuracy on its labelled answers: on those drawn by lot for an audit, or on those that got
    feedback, which may be the odd ones."""
    answers = traffic.num_of(CHAMPION, champion)
    outcomes = traffic.outcomes if audited else by_feedback(traffic.outcomes)
    right = outcomes.right[_audited(outcomes, CHAMPION)]
    labelled, num_right = len(right), int(right.sum())
    interval = wilson_interval(num_right, n=labelled, alpha=alpha) if labelled else (0.0, 1.0)
    estimate = float(traffic.sample.scores.mean(dtype=np.float64)) if len(traffic.sample) else None
    return Quality(answers, labelled, num_right, interval, estimate)


def fixed_groups(before: Mapping[str, Before], *, columns: Sequence[str]) -> tuple[str, ...]:
    """Names, `column = value`, of the groups that are looked at: known before any traffic is, so that their number is
    no matter of what was seen. Of each column, the reference's most common values."""
    found: list[str] = []
    for column in columns:
        names = [name for name in before if name.startswith(f"{column} = ")]
        found += sorted(sorted(names, key=lambda name: (-before[name].n, name))[:GROUP_VALUES])
    return tuple(found)


def groups_of(outcomes: Outcomes, *, columns: Sequence[str], fixed: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """Masks [F] of the rows of each fixed group, and of each column's other values, `column = (others)`."""
    found: dict[str, NDArray[np.bool_]] = {}
    for place, column in enumerate(columns):
        places = {name: number for number, name in enumerate(fixed) if name.startswith(f"{column} = ")}
        named = (places.get(f"{column} = {row[place]}", -1) for row in outcomes.groups)
        codes = np.fromiter(named, np.int64, len(outcomes))
        found |= {name: codes == number for name, number in places.items()}
        found[f"{column} = {OTHERS}"] = codes == -1
    return found


def groups_now(
    outcomes: Outcomes,
    *,
    columns: Sequence[str],
    before: Mapping[str, Before],
    limits: SubgroupGateConfig,
    alpha: float,
) -> Gate:
    """Whether a group is served worse than on the rows that the champion was chosen on; other rows, so not paired.

    A group fails if its loss is proven (Holm over the groups, and Newcombe's upper end for two proportions at its level
    under 0). No point decides, as one may of paired rows: of two samples of 100 rows one change in four is three points
    or more by chance. It passes if the lower end of the unadjusted interval is over -`max_loss`, and is not assessable
    otherwise. Rows of a value that the reference does not have are counted, and not compared.
    """
    fixed, audited = fixed_groups(before, columns=columns), _audited(outcomes, CHAMPION)
    counts = {
        name: Before(int((mask & audited).sum()), int(outcomes.right[mask & audited].sum()))
        for name, mask in groups_of(outcomes, columns=columns, fixed=fixed).items()
    }
    others = [f"{now.n:,} of {name}" for name, now in counts.items() if now.n and name not in fixed]
    note = f"labelled rows that are not compared: {', '.join(others)}" if others else ""
    known = {name: counts[name] for name in fixed if counts[name].n}
    if not known:
        return gate("groups", (), note=note or "no labelled answer is of a group")
    pairs = [(now, before[name]) for name, now in known.items()]
    p_values = [_p_value(now, than) for now, than in pairs]
    adjusted = holm(p_values)
    ordered = sorted(p_values)
    bounds = []
    for (now, than), name, p_value, holms in zip(pairs, known, p_values, adjusted, strict=True):
        level = alpha / (len(pairs) - ordered.index(p_value))
        harmed = holms < alpha and _interval(now, than, alpha=level)[1] < 0
        bounds.append(_bound(name, now=now, than=than, harmed=harmed, limits=limits, alpha=alpha))
    return gate("groups", bounds, note=note)


def trial_pairs(
    outcomes: Outcomes, *, columns: Sequence[str], fixed: Sequence[str]
) -> tuple[Pairs, dict[str, Pairs], list[PairedCounts]]:
    """Audited pairs of champion and trial: overall, by each fixed group, one without pairs included, and as tables of
    the groups that have some.

    A shadow answers the same text as the champion, which is a pair: the champion's audit is the shadow's. A canary
    answers others: its n-th audited answer is paired with the champion's n-th, in the order of time, and in a group the
    n-th of that group, for a group may be harder than others. Of a canary only answers to nobody in particular count: a
    subject stays in one arm, and who happens to be there would be told from who is not, whatever answers.
    """
    arms = [np.flatnonzero(_audited(outcomes, arm)) for arm in ARMS]
    masks = groups_of(outcomes, columns=columns, fixed=fixed)
    tables = {name: _paired(outcomes, [rows[masks[name][rows]] for rows in arms]) for name in fixed}
    groups = {name: _pairs(table) for name, table in tables.items()}
    return _pairs(_paired(outcomes, arms)), groups, [table for table in tables.values() if table is not None]


def num_of_subjects(outcomes: Outcomes) -> int:
    """Audited answers of a canary that are paired with none, since they are a subject's."""
    return int((_audited(outcomes, CANARY) & outcomes.of_subject).sum())


def paired_by_order(outcomes: Outcomes) -> bool:
    """Whether there are pairs of a canary's, which other answers are paired into when labels come late."""
    return bool(_audited(outcomes, CANARY).any())


def trial_groups(
    pairs: Mapping[str, Pairs], tables: Sequence[PairedCounts], *, limits: SubgroupGateConfig, alpha: float
) -> Gate:
    """The verdict's own reading of the groups that have pairs, on the trial's audited ones."""
    if not tables:
        return gate("groups", (), note="no audited pair is of a group that the champion was chosen on")
    names = [name for name, found in pairs.items() if found.num_pairs]
    harmed = proven_harmed(tables, alpha=alpha)
    bounds = [
        group_bound(name, counts=table, harmed=harm, limits=limits, alpha=alpha)
        for name, table, harm in zip(names, tables, harmed, strict=True)
    ]
    return gate("groups", bounds)


def _audited(outcomes: Outcomes, arm: str) -> NDArray[np.bool_]:
    """[F] the arm's audited rows; one that stands twice in the log counts once."""
    named = np.rec.fromarrays([outcomes.keys, outcomes.arms])
    first = np.zeros(len(outcomes), bool)
    first[np.unique(named, return_index=True)[1]] = True
    return np.asarray(first & outcomes.audited & (outcomes.arms == ARMS.index(arm)))


def _paired(outcomes: Outcomes, arms: Sequence[NDArray[np.int64]]) -> PairedCounts | None:
    """Of rows of the champion, a canary and a shadow; None where no two are a pair."""
    champion, canary, shadow = arms
    _, ours, theirs = np.intersect1d(outcomes.keys[champion], outcomes.keys[shadow], return_indices=True)
    left = np.setdiff1d(champion, champion[ours])
    anyones = [rows[~outcomes.of_subject[rows]] for rows in (left, canary)]
    streams = [rows[np.argsort(outcomes.at[rows], kind="stable")] for rows in anyones]
    size = min(map(len, streams))
    first = outcomes.right[np.concatenate([champion[ours], streams[0][:size]])]
    second = outcomes.right[np.concatenate([shadow[theirs], streams[1][:size]])]
    if not len(first):
        return None
    return PairedCounts(
        int((first & second).sum()),
        int((~first & second).sum()),
        int((first & ~second).sum()),
        int((~first & ~second).sum()),
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


def _bound(name: str, *, now: Before, than: Before, harmed: bool, limits: SubgroupGateConfig, alpha: float) -> Bound:
    change, interval = now.right / now.n - than.right / than.n, _interval(now, than, alpha=alpha)
    unharmed = State.PASSES if interval[0] > -limits.max_loss else State.NOT_ASSESSABLE
    state = State.FAILS if harmed else unharmed
    return Bound(f"change in {name}", change, interval, -limits.max_loss, now.n, state)
