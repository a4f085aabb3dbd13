"""Error rates and power of the challenger's test, where requests are dependent or differ in
difficulty by hour.

    python -m benchmarks.monitoring.challenger [simulations]

Each simulation is an experiment of 28 days with 150 labelled answers per day, and an audit and a
decision every four days. The false decisions promote a challenger that answers exactly as well as
the champion, at alpha = 5%:

- hours: accuracy is 60% by night and 90% by day;
- share: accuracy is 90% by night and 60% by day, when half of the canary's answers are lost;
- subjects: few subjects send most requests, and most answers to a subject are all right or all
  wrong;
- texts: each request has eight texts, and eight in ten answers to a request are all right or all
  wrong;
- scores: answers have scores from 0 to 1 (chat) with these means and a Beta distribution;
- missing: the shadow fails to answer 2% of the requests, only such that it would answer worse than
  the champion;
- both: a shadow for 14 days, then a canary.

Their contrasts are the shares of false decisions without a part of the comparison: if each answer
is a unit, if a canary is compared by the day instead of the hour, if missing answers are left out,
and if each arm has a test of its own. The power figures are the labels and units that prove a
challenger that is right in 83% of the requests against a champion that is right in 80%.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import beta

from benchmarks.rounds import finish, print_table
from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.statistics.confidence_sequence import log_e_value, log_wealth
from tailorbird.monitoring.challenger_units import (
    UnitOutcome,
    control_share,
    unit_differences,
    unit_outcomes,
)
from tailorbird.monitoring.quality import ALL, GroupAccuracy, group_gate
from tailorbird.monitoring.traffic import ARMS, CANARY, CHAMPION, DAY_US, HOUR_US, Outcomes
from tailorbird.registry.draws import CODES

ALPHA, DAYS, PER_DAY, AUDIT_DAYS, SEED = 0.05, 28, 150, 4, 1979
GRADES = (
    1.0  # sum of the parameters of the Beta distribution of scores; most scores are near 0 or 1
)
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
    graded: bool = (
        False  # answers have scores from 0 to 1 with these means, instead of being right or wrong
    )
    gain: float = 0.0  # of the challenger
    same: float = 0.0  # share of the requests that both versions answer equally well (shadow)
    missing: float = (
        0.0  # share of the requests that the shadow fails to answer, all worse than the champion
    )
    lost: float = 0.0  # share of the canary's answers by day that are not in the log


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
    "scores and subjects, canary": Setting(
        0.3, subjects=1000, repeat=0.8, night=0.6, day=0.9, graded=True
    ),
    "scores and subjects, shadow": Setting(None, subjects=300, repeat=0.8, graded=True),
    "share, canary": Setting(0.1, night=0.9, day=0.6, lost=0.5),
    "share and subjects, canary": Setting(
        0.1, subjects=3000, repeat=0.5, night=0.9, day=0.6, lost=0.5
    ),
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
    rates = {
        name: _false_decisions(setting, seed=row, num=num)
        for row, (name, setting) in enumerate(SETTINGS.items())
    }
    for row, (name, arms) in enumerate(BOTH.items()):
        rates[name] = _false_decisions_of_both(*arms, seed=60 + row, num=num)
    print_table(
        f"share of {num} experiments that promote an equal challenger (alpha {ALPHA})", rates
    )
    figures = {
        f"{kind}: {name}": rate for name, of_name in rates.items() for kind, rate in of_name.items()
    }
    bounds = {f"watch: {name}": "<= 0.08" for name in rates}

    power: dict[str, dict[str, float]] = {}
    for name, setting in POWER.items():
        rng = np.random.default_rng([SEED, 100 + len(power)])
        power[name] = _power(setting, rng, num=max(20, num // 10))
        figures[f"labels, median: {name}"] = power[name]["labels, median"]
        print(name, power[name], flush=True)
    print_table("labelled answers until a challenger with +3 points is promoted", power)

    for mean in (0.5, 0.8, 0.95):
        name = f"quality alarm: mean score {mean}"
        figures[name] = _quality_alarms(mean, num=25 * num)
        bounds[name] = "<= 0.05"
        print(name, figures[name], flush=True)
    finish("challenger", figures, bounds=bounds)


def _false_decisions(setting: Setting, *, seed: int, num: int) -> dict[str, float]:
    """Return the share of experiments that promote an equal challenger, by the kind of
    comparison."""
    kinds: dict[str, Callable[[Outcomes], list[UnitOutcome]]] = {
        "watch": lambda log: _compared(log, setting)
    }
    if setting.repeat:
        kinds["each answer"] = lambda log: _compared(
            _by_answer(log, setting), replace(setting, canary=0.5)
        )
    if setting.canary and setting.night != setting.day:
        kinds["by the day"] = lambda log: _by_day(_compared(log, setting))
    if setting.missing:
        kinds["without missing answers"] = lambda log: _compared(log.where(~log.missing), setting)
    rng = np.random.default_rng([SEED, seed])
    promoted = dict.fromkeys(kinds, 0)
    for _ in range(num):
        log = _log(setting, rng)
        for kind, compared in kinds.items():
            promoted[kind] += _proven_from(compared(log)) is not None
    rates = _with_error({kind: count / num for kind, count in promoted.items()}, num=num)
    print(setting, rates, flush=True)
    return rates


def _false_decisions_of_both(
    shadow: Setting, canary: Setting, *, seed: int, num: int
) -> dict[str, float]:
    """Return the same for experiments with a shadow and then a canary."""
    rng = np.random.default_rng([SEED, seed])
    promoted = {"watch": 0, "a test for each arm": 0}
    for _ in range(num):
        first, last = (_compared(_log(arm, rng, days=DAYS // 2), arm) for arm in (shadow, canary))
        moved = [outcome.model_copy(update={"audit": outcome.audit + DAYS}) for outcome in last]
        promoted["watch"] += _proven_from([*first, *moved]) is not None
        promoted["a test for each arm"] += any(
            _proven_from(of_arm) is not None for of_arm in (first, last)
        )
    rates = _with_error({kind: count / num for kind, count in promoted.items()}, num=num)
    print(canary, rates, flush=True)
    return rates


def _with_error(rates: dict[str, float], *, num: int) -> dict[str, float]:
    """Return the rates with the standard error of that of `watch`."""
    now = max(rates["watch"], 1 / num)
    return rates | {"standard error": float(np.sqrt(now * (1 - now) / num))}


def _by_answer(log: Outcomes, setting: Setting) -> Outcomes:
    """Return the compared answers, each as a unit of its own."""
    is_control = log.units.astype(np.float64) < control_share(setting.canary) * CODES
    compared = (
        log
        if setting.canary is None
        else log.where((log.arms != ARMS.index(CHAMPION)) | is_control)
    )
    return replace(compared, units=compared.keys)


def _by_day(outcomes: Sequence[UnitOutcome]) -> list[UnitOutcome]:
    """Return the outcomes without their hours, so units are matched within the day."""
    return [outcome.model_copy(update={"hour": outcome.hour // 24}) for outcome in outcomes]


def _quality_alarms(mean: float, *, num: int) -> float:
    """Return the share of simulated audits of 300 answers that prove a loss against a test of 500,
    without any loss."""
    rng, failed = np.random.default_rng([SEED, 200]), 0
    for _ in range(num):
        tested, audited = (
            rng.beta(GRADES * mean, GRADES * (1 - mean), size) for size in (500, 300)
        )
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
        checked = group_gate(
            outcomes, columns=(), reference=reference, limits=SubgroupGateConfig(), alpha=ALPHA
        )
        failed += checked.state is State.FAILS
    return failed / num


def _log(setting: Setting, rng: np.random.Generator, *, days: int = DAYS) -> Outcomes:
    """Return the audited answers of an experiment; audits are numbered from 1."""
    per_day = PER_DAY if setting.canary is None else PER_DAY / 2 / setting.canary
    num = int(days * per_day / setting.texts)
    day = rng.integers(0, days, num)
    hour = np.where(
        rng.random(num) < 0.25, rng.integers(0, NIGHT, num), rng.integers(NIGHT, 24, num)
    )
    unit, num_units = np.arange(num), num
    if setting.subjects:
        weights = 1 / np.arange(1, setting.subjects + 1) ** 0.8
        unit, num_units = (
            rng.choice(setting.subjects, num, p=weights / weights.sum()),
            setting.subjects,
        )
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
        rows, arms, scores = (
            np.tile(rows, 2),
            np.repeat([0, 2], len(rows)),
            scores.reshape(1, -1).repeat(2, 0),
        )
    missing = np.zeros(len(rows), bool)
    if setting.missing:
        half = len(rows) // 2
        worse = np.flatnonzero(
            scores[0, half:] < scores[0, :half]
        )  # the shadow's answers are the second half
        missing[
            half + rng.choice(worse, min(int(setting.missing * half), len(worse)), replace=False)
        ] = True
        scores = np.where(missing & (arms == 2), 0.0, scores)
    at = (day * DAY_US + hour * HOUR_US + rng.integers(0, HOUR_US, num))[rows]
    log = Outcomes(
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
    if not setting.lost:
        return log
    is_busy = (log.arms == ARMS.index(CANARY)) & (log.at % DAY_US >= NIGHT * HOUR_US)
    return log.where(~is_busy | (rng.random(len(log)) >= setting.lost))


def _compared(log: Outcomes, setting: Setting) -> list[UnitOutcome]:
    return list(unit_outcomes(log, columns=(), fixed=(), share=control_share(setting.canary)))


def _proven_from(outcomes: Sequence[UnitOutcome]) -> int | None:
    """Return the first audit after which the challenger is promoted, or None."""
    values = unit_differences(outcomes).values
    points = np.unique(values)
    counts = (values[:, None] == points).cumsum(axis=0, dtype=np.int32)
    if np.all(log_wealth(points, counts=counts, mean=0.0) < -np.log(ALPHA)):
        return None  # after no unit, so after no audit
    for audit in sorted({outcome.audit for outcome in outcomes}):
        units = unit_differences([outcome for outcome in outcomes if outcome.audit <= audit])
        if log_e_value(units.values) >= -np.log(ALPHA):
            return audit
    return None


def _power(setting: Setting, rng: np.random.Generator, *, num: int) -> dict[str, float]:
    """Return the labelled answers until a better challenger is promoted, in experiments of up to
    `LONGEST` days."""
    used = []
    for _ in range(num):
        outcomes = _compared(_log(setting, rng, days=LONGEST), setting)
        audit = _proven_from(outcomes) or LONGEST
        until = [outcome for outcome in outcomes if outcome.audit <= audit]
        labels = sum(outcome.answers for outcome in until)
        used.append((labels, len(unit_differences(until))))
    (median, _), (most, units) = np.quantile(used, [0.5, 0.8], axis=0, method="higher")
    figures = {
        "labels, median": median,
        "labels, 80%": most,
        "units, 80%": units,
    }
    return {name: float(value) for name, value in figures.items()}


if __name__ == "__main__":
    main()
