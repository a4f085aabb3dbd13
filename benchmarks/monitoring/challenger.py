"""Error rates and power of the challenger's test, where requests are dependent or differ in
difficulty by hour.

    python -m benchmarks.monitoring.challenger

Each simulation is an experiment of 28 days with 150 labelled answers per day, and an audit and a
decision every four days. The false decisions promote a challenger that answers exactly as well as
the champion, at alpha = 5%:

- hours: accuracy is 60% by night and 90% by day;
- share: accuracy is 90% by night and 60% by day, when half of the canary's answers are lost;
- subjects: few subjects send most requests, and most answers to a subject are all right or all
  wrong;
- texts: each request has eight texts, and eight in ten answers to a request are all right or all
  wrong;
- missing: the shadow fails to answer 2% of the requests, only such that it would answer worse than
  the champion.

Their contrasts are the shares of false decisions without a part of the comparison: if each answer
is a unit, if a canary is compared by the day instead of the hour, and if missing answers are left
out. The power figures are the labels that prove a challenger that is right in 83% of the requests
against a champion that is right in 80%; with `scores`, answers have scores from 0 to 1 with these
means and a Beta distribution.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.harness import finish, print_table
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

ALPHA = 0.05
DAYS = 28
LONGEST = 80  # most days of an experiment with a better challenger
PER_DAY = 150
AUDIT_DAYS = 4
NIGHT = 8  # hours of the night
SEED = 1979
NUM_EXPERIMENTS = 400
NUM_POWER = 20
NUM_AUDITS = 2_500
GRADES = 1.0
"""Sum of the parameters of the Beta distribution of scores; most scores are near 0 or 1."""


@dataclass(frozen=True)
class Setting:
    """How requests depend on each other, and which arms answer them."""

    seed: int
    canary: float | None  # None: the challenger is a shadow
    subjects: int = 0  # 0: requests have no subject
    texts: int = 1  # per request
    repeat: float = 0.0  # share of answers that are as right as all others of the unit
    night: float = 0.8  # accuracy by night and by day
    day: float = 0.8
    graded: bool = False
    """Answers have scores from 0 to 1 with these means, instead of being right or wrong."""
    gain: float = 0.0  # of the challenger
    same: float = 0.0  # share of the requests that both versions answer equally well (shadow)
    missing: float = 0.0
    """Share of the requests that the shadow fails to answer, all worse than the champion."""
    lost: float = 0.0  # share of the canary's answers by day that are not in the log


SETTINGS = {
    "hours, canary": Setting(0, 0.1, night=0.6, day=0.9),
    "subjects, canary": Setting(2, 0.1, subjects=3000, repeat=0.8),
    "subjects, shadow": Setting(3, None, subjects=300, repeat=0.8),
    "texts, shadow": Setting(6, None, texts=8, repeat=0.8),
    "share, canary": Setting(11, 0.1, night=0.9, day=0.6, lost=0.5),
    "missing, shadow": Setting(13, None, same=0.6, missing=0.02),
}
POWER = {
    "shadow": Setting(100, None, gain=0.03, same=0.6),
    "shadow, 8 texts": Setting(101, None, gain=0.03, same=0.6, texts=8, repeat=0.5),
    "canary of 10%": Setting(102, 0.1, gain=0.03),
    "canary of 50%": Setting(103, 0.5, gain=0.03),
    "shadow, scores": Setting(105, None, gain=0.03, same=0.6, graded=True),
}


def main() -> None:
    """Print false decisions and power, then one line of JSON."""
    figures: dict[str, float] = {}
    bounds = {}
    rates = {}
    for name, setting in SETTINGS.items():
        rates[name] = _false_decisions(setting)
        bounds[f"watch: {name}"] = "<= 0.08"
        figures |= {f"{kind}: {name}": rate for kind, rate in rates[name].items()}
    print_table(f"share of {NUM_EXPERIMENTS} experiments that promote an equal challenger", rates)

    power = {name: _power(setting) for name, setting in POWER.items()}
    print_table("labelled answers until a challenger with +3 points is promoted", power)
    for name, labels in power.items():
        figures |= {f"labels, {share}: {name}": number for share, number in labels.items()}

    for mean in (0.5, 0.8, 0.95):
        name = f"quality alarm: mean score {mean}"
        figures[name] = _quality_alarms(mean)
        bounds[name] = "<= 0.05"
    finish("challenger", figures, bounds=bounds)


def _false_decisions(setting: Setting) -> dict[str, float]:
    """Return the share of experiments that promote an equal challenger, by the kind of
    comparison."""
    rng = np.random.default_rng([SEED, setting.seed])
    promoted: Counter[str] = Counter()
    for _ in range(NUM_EXPERIMENTS):
        log = _log(setting, rng)
        outcomes = _compared(log, setting)
        compared = {"watch": outcomes}
        if setting.repeat:
            halves = replace(setting, canary=0.5)
            compared["each answer"] = _compared(_by_answer(log, setting), halves)
        if setting.canary and setting.night != setting.day:
            compared["by the day"] = [
                outcome.model_copy(update={"hour": outcome.hour // 24}) for outcome in outcomes
            ]
        if setting.missing:
            compared["without missing answers"] = _compared(log.where(~log.missing), setting)
        for kind, units in compared.items():
            promoted[kind] += _proven_from(units) is not None
    return {kind: promoted[kind] / NUM_EXPERIMENTS for kind in compared}


def _by_answer(log: Outcomes, setting: Setting) -> Outcomes:
    """Return the compared answers, each as a unit of its own."""
    if setting.canary is not None:
        is_control = log.units.astype(np.float64) < control_share(setting.canary) * CODES
        log = log.where((log.arms != ARMS.index(CHAMPION)) | is_control)
    return replace(log, units=log.keys)


def _quality_alarms(mean: float) -> float:
    """Return the share of simulated audits of 300 answers that prove a loss against a test of 500,
    without any loss."""
    rng = np.random.default_rng([SEED, 200])
    failed = 0
    for _ in range(NUM_AUDITS):
        tested, audited = (
            rng.beta(GRADES * mean, GRADES * (1 - mean), size) for size in (500, 300)
        )
        outcomes = _outcomes(np.arange(300, dtype=np.uint64), scores=audited)
        checked = group_gate(
            outcomes,
            columns=(),
            reference={ALL: GroupAccuracy.of(tested, keys=np.arange(500))},
            limits=SubgroupGateConfig(),
            alpha=ALPHA,
        )
        failed += checked.state is State.FAILS
    return failed / NUM_AUDITS


def _outcomes(keys: NDArray[np.uint64], **columns: NDArray[Any]) -> Outcomes:
    """Return audited answers of the champion in the first audit; `columns` replace columns."""
    num = len(keys)
    zeros = np.zeros(num, np.int64)
    fields: dict[str, Any] = {
        "keys": keys,
        "arms": np.zeros(num, np.uint8),
        "at": zeros,
        "audits": np.ones(num, np.int32),
        "groups": ((),) * num,
        "labelled_at": zeros,
        "units": keys,
        "is_subject": np.zeros(num, bool),
        "by_person": np.zeros(num, bool),
        "missing": np.zeros(num, bool),
    }
    return Outcomes(**(fields | columns))


def _log(setting: Setting, rng: np.random.Generator, *, days: int = DAYS) -> Outcomes:
    """Return the audited answers of an experiment; audits are numbered from 1."""
    per_day: float = PER_DAY
    if setting.canary is not None:
        per_day = PER_DAY / 2 / setting.canary
    num = int(days * per_day / setting.texts)
    day = rng.integers(0, days, num)
    is_night = rng.random(num) < 0.25
    hour = np.where(is_night, rng.integers(0, NIGHT, num), rng.integers(NIGHT, 24, num))
    unit = np.arange(num)
    num_units = num
    if setting.subjects:
        num_units = setting.subjects
        weights = 1 / np.arange(1, num_units + 1) ** 0.8
        unit = rng.choice(num_units, num, p=weights / weights.sum())
    codes = rng.integers(0, 2**64, num_units, np.uint64)
    is_canary = rng.random(num_units) < (setting.canary or 0.0)
    repeated = rng.random((2, num_units))  # for the answers that are all right or all wrong

    rows = np.repeat(np.arange(num), setting.texts)
    units = unit[rows]
    draws = rng.random((2, len(rows)))
    draws[1] = np.where(rng.random(len(rows)) < setting.same, draws[0], draws[1])
    draws = np.where(rng.random(len(rows)) < setting.repeat, repeated[:, units], draws)
    accuracy = np.where(hour[rows] < NIGHT, setting.night, setting.day)
    means = np.minimum(accuracy + np.array([[0.0], [setting.gain]]), 0.99)
    scores = (draws < means).astype(np.float64)  # of the champion and of the challenger
    if setting.graded:
        scores = beta.isf(draws, GRADES * means, GRADES * (1 - means))

    arms = np.where(is_canary[units], 1, 0)
    answered = np.where(is_canary[units], scores[1], scores[0])
    missing = np.zeros(len(rows), bool)
    if setting.canary is None:
        # The shadow's answers are the second half.
        arms = np.repeat([0, 2], len(rows))
        answered = scores.ravel()
        missing = np.zeros(len(arms), bool)
        if setting.missing:
            worse = len(rows) + np.flatnonzero(scores[1] < scores[0])
            num_missing = min(int(setting.missing * len(rows)), len(worse))
            missing[rng.choice(worse, num_missing, replace=False)] = True
            answered = np.where(missing, 0.0, answered)
        rows = np.tile(rows, 2)

    at = (day * DAY_US + hour * HOUR_US + rng.integers(0, HOUR_US, num))[rows]
    keys = rng.integers(0, 2**63, num * setting.texts).astype(np.uint64)
    log = _outcomes(
        np.resize(keys, len(rows)),
        arms=arms.astype(np.uint8),
        at=at,
        scores=answered,
        audits=(day[rows] // AUDIT_DAYS + 1).astype(np.int32),
        labelled_at=at,
        units=codes[unit[rows]],
        is_subject=np.full(len(rows), bool(setting.subjects)),
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


def _power(setting: Setting) -> dict[str, float]:
    """Return the labelled answers until a better challenger is promoted, in experiments of up to
    `LONGEST` days."""
    rng = np.random.default_rng([SEED, setting.seed])
    used = []
    for _ in range(NUM_POWER):
        outcomes = _compared(_log(setting, rng, days=LONGEST), setting)
        audit = _proven_from(outcomes) or LONGEST
        used.append(sum(outcome.answers for outcome in outcomes if outcome.audit <= audit))
    median, most = np.quantile(used, [0.5, 0.8], method="higher")
    return {"median": float(median), "80%": float(most)}


if __name__ == "__main__":
    main()
