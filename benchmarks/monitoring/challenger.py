"""Error rates and power of the challenger's test, where requests are dependent or differ in difficulty by hour.

    python -m benchmarks.monitoring.challenger [simulations]

Each simulation is an experiment of 28 days with 150 labelled answers per day, and an audit and a decision every four
days. The false decisions promote a challenger that answers exactly as well as the champion, at alpha = 5%:

- hours: accuracy is 60% by night and 90% by day;
- subjects: few subjects send most requests, and eight in ten answers to a subject are all right or all wrong;
- texts: each request has eight texts, and eight in ten answers to a request are all right or all wrong;
- scores: answers have scores from 0 to 1 (chat) with these means and a Beta distribution.

`before` is the share of false decisions if each pair of answers is one bet, and a canary's answers of a day are paired
with the champion's in order of time. `by_day` bets once per unit and day. Two more kinds of experiments compare `watch`
with the former test, in which `before` is its share of false decisions:

- missing: the shadow fails to answer 2% of the requests, only such that it would answer worse than the champion. They
  were not compared before;
- both: a shadow for 14 days, then a canary. After many missing answers, the canary was compared alone.

The power figures are the labels and units
that prove a challenger that is right in 83% of the requests against a champion that is right in 80%.
"""

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.rounds import finish, print_table
from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.monitoring.challenger_units import UnitOutcome, control_share, unit_differences, unit_outcomes
from tailorbird.monitoring.quality import ALL, GroupAccuracy, group_gate
from tailorbird.monitoring.sequential_test import log_e_value, units_needed
from tailorbird.monitoring.traffic import ARMS, DAY_US, HOUR_US, Outcomes

ALPHA, DAYS, PER_DAY, AUDIT_DAYS, SEED = 0.05, 28, 150, 4, 1979
GRADES = 1.0  # sum of the parameters of the Beta distribution of scores; most scores are near 0 or 1
NIGHT, LONGEST = 8, 80  # hours of the night; most days of an experiment with a better challenger


@dataclass(frozen=True)
class Setting:
    """How requests depend on each other, and which arms answer them."""

    canary: float | None  # None: the challenger is a shadow
    subjects: int = 0  # 0: requests have no subject
    texts: int = 1  # per request
    repeat: float = 0.0  # share of answers that are as right as all others of the unit
    night: float = 0.8  # accuracy by night and by day
    day: float = 0.8
    graded: bool = False  # answers have scores from 0 to 1 with these means, instead of being right or wrong
    gain: float = 0.0  # of the challenger
    same: float = 0.0  # share of the requests that both versions answer equally well (shadow)
    missing: float = 0.0  # share of the requests that the shadow fails to answer, all worse than the champion


SETTINGS = {
    "hours, canary": Setting(0.1, night=0.6, day=0.9),
    "hours, shadow": Setting(None, night=0.6, day=0.9),
    "subjects, canary": Setting(0.1, subjects=3000, repeat=0.8),
    "subjects, shadow": Setting(None, subjects=300, repeat=0.8),
    "subjects and hours, canary": Setting(0.3, subjects=1000, repeat=0.8, night=0.6, day=0.9),
    "texts, canary": Setting(0.1, texts=8, repeat=0.8),
    "texts, shadow": Setting(None, texts=8, repeat=0.8),
    "scores, canary": Setting(0.1, night=0.6, day=0.9, graded=True),
    "scores, shadow": Setting(None, night=0.6, day=0.9, graded=True),
    "scores and subjects, canary": Setting(0.3, subjects=1000, repeat=0.8, night=0.6, day=0.9, graded=True),
    "scores and subjects, shadow": Setting(None, subjects=300, repeat=0.8, graded=True),
}
MISSING = {
    "missing, shadow": Setting(None, same=0.6, missing=0.02),
    "missing, scores, shadow": Setting(None, same=0.6, missing=0.02, graded=True),
}
BOTH = {
    "both": (Setting(None), Setting(0.3)),
    "both, scores": (Setting(None, graded=True), Setting(0.3, graded=True)),
}
POWER = {
    "shadow": Setting(None, gain=0.03, same=0.6),
    "shadow, 8 texts": Setting(None, gain=0.03, same=0.6, texts=8, repeat=0.5),
    "canary of 10%": Setting(0.1, gain=0.03),
    "canary of 50%": Setting(0.5, gain=0.03),
    "canary of 10%, subjects": Setting(0.1, gain=0.03, subjects=20_000, repeat=0.5),
    "shadow, scores": Setting(None, gain=0.03, same=0.6, graded=True),
    "canary of 10%, scores": Setting(0.1, gain=0.03, graded=True),
}


def main() -> None:
    """Print false decisions and power, then one line of JSON."""
    num = int(sys.argv[1]) if sys.argv[1:] else 400
    figures: dict[str, float] = {}
    rates: dict[str, dict[str, float]] = {}
    for name, setting in SETTINGS.items():
        rng = np.random.default_rng([SEED, len(rates)])
        promoted = np.array([_false_decisions(_log(setting, rng), setting) for _ in range(num)])
        before, by_day, now = map(float, promoted.mean(0))
        error = float(np.sqrt(max(now, 1 / num) * (1 - now) / num))
        rates[name] = {"before": before, "by_day": by_day, "now": now, "standard error": error}
        figures |= {f"before: {name}": before, f"now: {name}": now}
        print(name, rates[name], flush=True)
    print_table(f"share of {num} experiments that promote an equal challenger (alpha {ALPHA})", rates)
    figures |= _compared_with_before(num)
    power: dict[str, dict[str, float]] = {}
    for name, setting in POWER.items():
        rng = np.random.default_rng([SEED, 100 + len(power)])
        power[name] = _power(setting, rng, num=max(20, num // 10))
        figures[f"labels, median: {name}"] = power[name]["labels, median"]
        print(name, power[name], flush=True)
    print_table("labelled answers until a challenger with +3 points is promoted", power)
    bounds = {f"now: {name}": "<= 0.08" for name in (*SETTINGS, *MISSING, *BOTH)}
    for mean in (0.5, 0.8, 0.95):
        name = f"quality alarm: mean score {mean}"
        figures[name] = _quality_alarms(mean, num=25 * num)
        bounds[name] = "<= 0.05"
        print(name, figures[name], flush=True)
    finish("challenger", figures, bounds=bounds)


def _compared_with_before(num: int) -> dict[str, float]:
    """Return the false decisions of experiments with missing answers, and of those with both arms."""
    rates: dict[str, dict[str, float]] = {}
    for row, (name, setting) in enumerate(MISSING.items()):
        rng, promoted = np.random.default_rng([SEED, 50 + row]), np.zeros(2)
        for _ in range(num):
            log = _log(setting, rng)
            former = log.where(~log.missing)
            promoted += [_proven_from(_compared(each, setting)) is not None for each in (former, log)]
        rates[name] = dict(zip(("before", "now"), (promoted / num).tolist(), strict=True))
        print(name, rates[name], flush=True)
    for row, (name, (shadow, canary)) in enumerate(BOTH.items()):
        rng, promoted = np.random.default_rng([SEED, 60 + row]), np.zeros(2)
        for _ in range(num):
            first, last = (_compared(_log(each, rng, days=DAYS // 2), each) for each in (shadow, canary))
            moved = [outcome.model_copy(update={"audit": outcome.audit + DAYS}) for outcome in last]
            alone = [_proven_from(of_arm, days=DAYS // 2) is not None for of_arm in (first, last)]
            promoted += [any(alone), _proven_from([*first, *moved], days=AUDIT_DAYS * 2 * DAYS) is not None]
        rates[name] = dict(zip(("before", "now"), (promoted / num).tolist(), strict=True))
        print(name, rates[name], flush=True)
    print_table(f"share of {num} experiments that promote an equal challenger (alpha {ALPHA})", rates)
    return {f"{when}: {name}": rate for name, of_name in rates.items() for when, rate in of_name.items()}


def _quality_alarms(mean: float, *, num: int) -> float:
    """Return the share of simulated audits of 300 answers that prove a loss against a test of 500, without any loss."""
    rng, failed = np.random.default_rng([SEED, 200]), 0
    for _ in range(num):
        tested, audited = (rng.beta(GRADES * mean, GRADES * (1 - mean), size) for size in (500, 300))
        outcomes = Outcomes(
            keys=np.arange(300, dtype=np.uint64),
            arms=np.zeros(300, np.uint8),
            at=np.zeros(300, np.int64),
            scores=audited,
            audits=np.ones(300, np.int32),
            groups=((),) * 300,
            labelled_at=np.zeros(300, np.int64),
            units=np.arange(300, dtype=np.uint64),
            is_subject=np.zeros(300, bool),
            by_person=np.zeros(300, bool),
            missing=np.zeros(300, bool),
        )
        reference = {ALL: GroupAccuracy.of(tested, keys=np.arange(500))}
        checked = group_gate(outcomes, columns=(), reference=reference, limits=SubgroupGateConfig(), alpha=ALPHA)
        failed += checked.state is State.FAILS
    return failed / num


def _log(setting: Setting, rng: np.random.Generator, *, days: int = DAYS) -> Outcomes:
    """Return the audited answers of an experiment; audits are numbered from 1.

    A canary's audit also has the champion's answers that are not compared, because the former pairing used them.
    """
    per_day = PER_DAY if setting.canary is None else PER_DAY / 2 / setting.canary
    num = int(days * per_day / setting.texts)
    day = rng.integers(0, days, num)
    hour = np.where(rng.random(num) < 0.25, rng.integers(0, NIGHT, num), rng.integers(NIGHT, 24, num))
    unit, num_units = np.arange(num), num
    if setting.subjects:
        weights = 1 / np.arange(1, setting.subjects + 1) ** 0.8
        unit, num_units = rng.choice(setting.subjects, num, p=weights / weights.sum()), setting.subjects
    codes = rng.integers(0, 2**64, num_units, np.uint64)
    is_canary = rng.random(num_units) < (setting.canary or 0.0)
    repeated = rng.random((2, num_units))  # for the answers that are all right or all wrong

    rows = np.repeat(np.arange(num), setting.texts)
    of_unit = unit[rows]
    draws = rng.random((2, len(rows)))
    draws[1] = np.where(rng.random(len(rows)) < setting.same, draws[0], draws[1])
    draws = np.where(rng.random(len(rows)) < setting.repeat, repeated[:, of_unit], draws)
    accuracy = np.where(hour[rows] < NIGHT, setting.night, setting.day)
    means = np.minimum(accuracy + np.array([[0.0], [setting.gain]]), 0.99)
    scores = (draws < means).astype(np.float64)
    if setting.graded:
        scores = beta.isf(draws, GRADES * means, GRADES * (1 - means))
    arms = np.where(is_canary[of_unit], 1, 0)
    if setting.canary is None:
        rows, arms, scores = np.tile(rows, 2), np.repeat([0, 2], len(rows)), scores.reshape(1, -1).repeat(2, 0)
    missing = np.zeros(len(rows), bool)
    if setting.missing:
        half = len(rows) // 2
        worse = np.flatnonzero(scores[0, half:] < scores[0, :half])  # the shadow's answers are the second half
        missing[half + rng.choice(worse, min(int(setting.missing * half), len(worse)), replace=False)] = True
        scores = np.where(missing & (arms == 2), 0.0, scores)
    at = (day * DAY_US + hour * HOUR_US + rng.integers(0, HOUR_US, num))[rows]
    return Outcomes(
        keys=np.resize(rng.integers(0, 2**63, num * setting.texts).astype(np.uint64), len(rows)),
        arms=arms.astype(np.uint8),
        at=at,
        scores=np.where(arms == 0, scores[0], scores[1]),
        audits=(day[rows] // AUDIT_DAYS + 1).astype(np.int32),
        groups=((),) * len(rows),
        labelled_at=at,
        units=codes[unit[rows]],
        is_subject=np.full(len(rows), bool(setting.subjects)),
        by_person=np.zeros(len(rows), bool),
        missing=missing,
    )


def _false_decisions(log: Outcomes, setting: Setting) -> tuple[bool, bool, bool]:
    """Return True for each test that ever promotes: each pair is a bet, each unit and day is a bet, each unit is."""
    pairs, units, days = _pairs_by_order(log)
    per_day: list[list[float]] = [[] for _ in range(DAYS)]
    for day in range(DAYS):
        of_day = days == day
        sums = np.bincount(np.unique(units[of_day], return_inverse=True)[1], weights=pairs[of_day])
        counts = np.unique(units[of_day], return_counts=True)[1]
        per_day[day] = (sums / counts).tolist()
    looks = range(AUDIT_DAYS, DAYS + 1, AUDIT_DAYS)
    by_pair = _ever_proven([pairs[days < day] for day in looks])
    by_day = _ever_proven([np.concatenate(per_day[:day]) for day in looks])
    return by_pair, by_day, _proven_from(_compared(log, setting)) is not None


def _pairs_by_order(log: Outcomes) -> tuple[NDArray[np.float64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return the differences, the challenger's units and the days of pairs of answers, as they were formed before."""
    shadow = np.flatnonzero(log.arms == ARMS.index("shadow"))
    if len(shadow):
        champion = np.flatnonzero(log.arms == 0)
        _, ours, theirs = np.intersect1d(log.keys[champion], log.keys[shadow], return_indices=True)
        first, second = champion[ours], shadow[theirs]
    else:
        paired = [_first_of_day(log, day) for day in range(DAYS)]
        first, second = (np.concatenate([pair[arm] for pair in paired]) for arm in (0, 1))
    return log.scores[second] - log.scores[first], log.units[second], log.at[second] // DAY_US


def _first_of_day(log: Outcomes, day: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    of_day = np.flatnonzero(log.at // DAY_US == day)
    of_day = of_day[np.argsort(log.at[of_day])]
    champion, canary = of_day[log.arms[of_day] == 0], of_day[log.arms[of_day] == 1]
    size = min(len(champion), len(canary))
    return champion[:size], canary[:size]


def _compared(log: Outcomes, setting: Setting) -> list[UnitOutcome]:
    return list(unit_outcomes(log, columns=(), fixed=(), share=control_share(setting.canary)))


def _proven_from(outcomes: Sequence[UnitOutcome], *, days: int = DAYS) -> int | None:
    """Return the first audit after which the challenger is promoted, or None."""
    first: dict[int, int] = {}
    for outcome in outcomes:
        first[outcome.unit] = min(outcome.audit, first.get(outcome.unit, outcome.audit))
    by_audit: dict[int, list[UnitOutcome]] = defaultdict(list)
    for outcome in outcomes:
        if first[outcome.unit] == outcome.audit:  # units that counted before are ignored
            by_audit[outcome.audit].append(outcome)
    values = np.zeros(0)
    for audit in range(1, days // AUDIT_DAYS + 1):
        values = np.concatenate([values, unit_differences(by_audit[audit]).values])
        if _ever_proven([values]):
            return audit
    return None


def _ever_proven(looks: Sequence[NDArray[np.float64]]) -> bool:
    return any(log_e_value(values) >= -np.log(ALPHA) for values in looks)


def _power(setting: Setting, rng: np.random.Generator, *, num: int) -> dict[str, float]:
    """Return the labelled answers until a better challenger is promoted, in experiments of up to `LONGEST` days."""
    used = []
    for _ in range(num):
        outcomes = _compared(_log(setting, rng, days=LONGEST), setting)
        audit = _proven_from(outcomes, days=LONGEST) or LONGEST
        until = [outcome for outcome in outcomes if outcome.audit <= audit]
        labels = sum(outcome.answers for outcome in until)
        used.append((labels, len(unit_differences(until))))
    values = unit_differences(outcomes).values
    needed = units_needed(setting.gain, variance=float((values**2).mean()), alpha=ALPHA)
    (median, _), (most, units) = np.quantile(used, [0.5, 0.8], axis=0, method="higher")
    figures = {"labels, median": median, "labels, 80%": most, "units, 80%": units, "units, claimed": needed}
    return {name: float(value) for name, value in figures.items()}


if __name__ == "__main__":
    main()
