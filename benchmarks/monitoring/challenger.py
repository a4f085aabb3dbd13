"""Error rates and power of the decision on a challenger, where answers are dependent or missing.

    python -m benchmarks.monitoring.challenger

Each simulation is an experiment of 28 days with 150 labelled answers per day, and an audit and a
decision every four days. The false decisions promote a challenger that answers exactly as well as
the champion, at alpha = 5%:

- texts: each request has eight texts, and eight in ten answers to a request are all right or all
  wrong;
- missing: the shadow fails to answer 2% of the requests, only such that it would answer worse than
  the champion;
- persons: few persons send most requests, and most answers to a person are all right or all wrong.
  `watch` does not know the persons, so this error has no bound.

Their contrasts are the shares of false decisions without a part of the comparison: if each answer
counts, and if missing answers are left out. The power figures are the labels that prove a
challenger that is right in 83% of the requests against a champion that is right in 80%; with
`scores`, answers have scores from 0 to 1 with these means and a Beta distribution.
"""

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from benchmarks.harness import finish, print_table
from tailorbird.config.evaluation import SubgroupGateConfig
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.statistics.confidence_sequence import log_wealth
from tailorbird.monitoring.quality import ALL, GroupAccuracy, group_gate
from tailorbird.monitoring.shadow_pairs import PairedOutcome, paired_differences, paired_outcomes
from tailorbird.monitoring.traffic import ARMS, SHADOW, Outcomes

ALPHA = 0.05
ACCURACY = 0.8
DAYS = 28
LONGEST = 80  # most days of an experiment with a better challenger
PER_DAY = 150
AUDIT_DAYS = 4
SEED = 1979
NUM_EXPERIMENTS = 400
NUM_POWER = 100
NUM_AUDITS = 2_500
GRADES = 1.0
"""Sum of the parameters of the Beta distribution of scores; most scores are near 0 or 1."""


@dataclass(frozen=True)
class Setting:
    """How answers depend on each other."""

    seed: int
    persons: int = 0  # 0: each request is of another person
    texts: int = 1  # per request
    repeat: float = 0.0  # share of answers that are as right as all others of the person
    graded: bool = False
    """Answers have scores from 0 to 1 with these means, instead of being right or wrong."""
    gain: float = 0.0  # of the challenger
    same: float = 0.0  # share of the requests that both versions answer equally well
    missing: float = 0.0
    """Share of the requests that the shadow fails to answer, all worse than the champion."""


SETTINGS = {
    "texts": Setting(6, texts=8, repeat=0.8),
    "missing": Setting(13, same=0.6, missing=0.02),
    "persons": Setting(3, persons=300, repeat=0.8),
}
UNBOUNDED = {"persons"}
POWER = {
    "shadow": Setting(100, gain=0.03, same=0.6),
    "shadow, 8 texts": Setting(101, gain=0.03, same=0.6, texts=8, repeat=0.5),
    "shadow, scores": Setting(105, gain=0.03, same=0.6, graded=True),
}


def main() -> None:
    """Print false decisions and power, then one line of JSON."""
    figures: dict[str, float] = {}
    bounds = {}
    rates = {}
    for name, setting in SETTINGS.items():
        rates[name] = _false_decisions(setting)
        if name not in UNBOUNDED:
            bounds[f"watch: {name}"] = "<= 0.05"
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
        compared = {"watch": log}
        if setting.texts > 1:
            compared["each answer"] = replace(log, requests=log.keys)
        if setting.missing:
            compared["without missing answers"] = log.where(~log.missing)
        for kind, outcomes in compared.items():
            promoted[kind] += _proven_from(outcomes) is not None
    return {kind: promoted[kind] / NUM_EXPERIMENTS for kind in compared}


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
        "requests": keys,
        "by_person": np.zeros(num, bool),
        "missing": np.zeros(num, bool),
    }
    return Outcomes(**(fields | columns))


def _log(setting: Setting, rng: np.random.Generator, *, days: int = DAYS) -> Outcomes:
    """Return the audited answers of champion and shadow in an experiment; audits are numbered from
    1."""
    num = days * PER_DAY // setting.texts
    day = rng.integers(0, days, num)
    person = np.arange(num)
    num_persons = num
    if setting.persons:
        num_persons = setting.persons
        weights = 1 / np.arange(1, num_persons + 1) ** 0.8
        person = rng.choice(num_persons, num, p=weights / weights.sum())
    repeated = rng.random((2, num_persons))  # for the answers that are all right or all wrong

    rows = np.repeat(np.arange(num), setting.texts)
    draws = rng.random((2, len(rows)))
    draws[1] = np.where(rng.random(len(rows)) < setting.same, draws[0], draws[1])
    draws = np.where(rng.random(len(rows)) < setting.repeat, repeated[:, person[rows]], draws)
    means = ACCURACY + np.array([[0.0], [setting.gain]])
    scores = (draws < means).astype(np.float64)  # of the champion and of the challenger
    if setting.graded:
        scores = beta.isf(draws, GRADES * means, GRADES * (1 - means))

    missing = np.zeros(2 * len(rows), bool)  # the shadow's answers are the second half
    if setting.missing:
        worse = len(rows) + np.flatnonzero(scores[1] < scores[0])
        num_missing = min(int(setting.missing * len(rows)), len(worse))
        missing[rng.choice(worse, num_missing, replace=False)] = True
    keys = rng.integers(0, 2**63, len(rows)).astype(np.uint64)
    codes = rng.integers(0, 2**64, num, np.uint64)
    return _outcomes(
        np.tile(keys, 2),
        arms=np.repeat([0, ARMS.index(SHADOW)], len(rows)).astype(np.uint8),
        scores=np.where(missing, 0.0, scores.ravel()),
        audits=np.tile(day[rows] // AUDIT_DAYS + 1, 2).astype(np.int32),
        requests=np.tile(codes[rows], 2),
        missing=missing,
    )


def _proven_from(log: Outcomes) -> int | None:
    """Return the first audit after which the challenger is promoted, or None.

    The lower end of the confidence sequence is above 0 if the bets against a mean of 0 win, which
    takes much less time than its bisection.
    """
    pairs: list[PairedOutcome] = []
    for audit in np.unique(log.audits).tolist():  # a request is in one audit
        pairs += paired_outcomes(log.where(log.audits == audit), columns=(), fixed=())
        values, counts = np.unique(paired_differences(pairs).values, return_counts=True)
        if log_wealth(values, counts=counts, mean=0.0) >= np.log(2 / ALPHA):
            return int(audit)
    return None


def _power(setting: Setting) -> dict[str, float]:
    """Return the labelled answers until a better challenger is promoted, in experiments of up to
    `LONGEST` days."""
    rng = np.random.default_rng([SEED, setting.seed])
    used = []
    for _ in range(NUM_POWER):
        log = _log(setting, rng, days=LONGEST)
        audit = _proven_from(log) or LONGEST
        used.append(int(np.sum((log.arms == 0) & (log.audits <= audit))))
    median, most = np.quantile(used, [0.5, 0.8], method="higher")
    return {"median": float(median), "80%": float(most)}


if __name__ == "__main__":
    main()
