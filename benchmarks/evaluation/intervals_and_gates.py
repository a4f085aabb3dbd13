"""Measure the error rates of the gates, each rate with its Monte Carlo error.

    python -m benchmarks.evaluation.intervals_and_gates [calibration] [groups] [swaps]

Calibration: coverage of the interval of the debiased calibration error, and how often the gate
passes and fails. Groups: how often the gate passes and fails a candidate that gains the same in
every group, or loses in one; *random effects* is how often a random-effects interval would let the
candidate, or that group, pass. Swaps: the counterfactual gate, and the robustness gate.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.rounds import Figures, finish, print_table
from tailorbird.config.evaluation import (
    CalibrationGateConfig,
    CounterfactualGateConfig,
    RobustnessGateConfig,
    SubgroupGateConfig,
)
from tailorbird.evaluation.gates.base import Estimate, Gate, State
from tailorbird.evaluation.gates.behavioral import counterfactual_gate, robustness_gate
from tailorbird.evaluation.gates.calibration import NUM_BINS, calibration_gate
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.predictions import Predictions

FloatArray = NDArray[np.float64]

ALPHA = 0.05
SEED = 2026
NUM_GATES = 400
DISCORDANCE = 0.15
LIMITS = SubgroupGateConfig()
UNEVEN = (150, 200, 250, 300, 350, 450, 550, 750)  # 3,000 rows in 8 groups
SOUND_GROUPS = {
    "8 x 375": (375,) * 8,
    "150 to 750": UNEVEN,
    "12 x 250": (250,) * 12,
    "8 x 125": (125,) * 8,
    "12 x 30": (30,) * 12,
}
TEMPERATURE_ROWS = 1_500
BOUNDS = {
    "lowest_coverage_of_ece": ">= 0.93",
    "coverage_of_ece_by_50_documents": ">= 0.90",
    "calibrated_passes_at_1000_rows": ">= 0.5",
    "ece_of_8_points_fails_at_2000_rows": ">= 0.8",
    "ece_at_the_limit_fails": "<= 0.05",
    "sound_groups_pass_at_3000_rows": ">= 0.6",
    "sound_groups_fail": "<= 0.08",
    "group_of_150_that_loses_10_fails": ">= 0.9",
    "groups_that_lose_10_pass": "<= 0.06",
    "group_of_150_that_loses_the_limit_passes": "<= 0.25",
    "sound_swaps_pass_at_500_rows": ">= 0.5",
    "swaps_that_change_5_more_fail_at_500_rows": ">= 0.8",
    "sound_swaps_fail": "<= 0.05",
    "sound_robustness_passes_at_1000_rows": ">= 0.5",
}


def main() -> None:
    """Prints a table per part, then one line of JSON."""
    parts: dict[str, Callable[[], Figures]] = {
        "calibration": calibration,
        "groups": groups,
        "swaps": swaps,
    }
    figures: dict[str, float] = {}
    for part in sys.argv[1:] or parts:
        figures |= parts[part]()
    finish(
        "intervals_and_gates",
        figures,
        bounds={name: BOUNDS[name] for name in BOUNDS if name in figures},
    )


def calibration() -> Figures:
    """The debiased ECE: coverage of its interval, and the state of the gate.

    The confidence of a *sound* model is off by the error of a temperature that is fitted on
    `TEMPERATURE_ROWS` rows.
    """
    rows: dict[str, Figures] = {}
    for n in (1_000, 2_000, 3_000):
        rows[f"sound, {n:,} rows"] = _calibration_rates(n, excess=None)
    for excess in (0.03, 0.05, 0.08, 0.1):
        for n in (500, 2_000):
            rows[f"ECE {excess:g}, {n:,} rows"] = _calibration_rates(n, excess=excess)
    rows["S-shaped, 500 rows"] = _calibration_rates(500, excess=0.08, is_s_shaped=True)
    by_documents = rows["ECE 0.08, 50 documents of 10 rows"] = _calibration_rates(
        500, excess=0.08, size=10
    )
    print_table("The calibration gate: debiased ECE at most 0.05", rows)
    return {
        "lowest_coverage_of_ece": min(
            row["coverage"]
            for row in rows.values()
            if "coverage" in row and row is not by_documents
        ),
        "coverage_of_ece_by_50_documents": by_documents["coverage"],
        "calibrated_passes_at_1000_rows": rows["sound, 1,000 rows"]["passes"],
        "ece_of_8_points_fails_at_2000_rows": rows["ECE 0.08, 2,000 rows"]["fails"],
        "ece_at_the_limit_fails": max(
            rows[f"ECE 0.05, {n} rows"]["fails"] for n in ("500", "2,000")
        ),
    }


def groups() -> Figures:
    """Error rates of the groups gate on sound and on harmful candidates."""
    sound = {}
    for name, sizes in SOUND_GROUPS.items():
        for gain in (0.03, 0.0):
            sound[f"{name} rows, gain {gain:g}"] = _group_rates((gain,) * len(sizes), sizes=sizes)
    sound["150 to 750 rows in documents of 5, gain 0.03"] = _group_rates(
        (0.03,) * 8, sizes=UNEVEN, size=5
    )
    print_table("The groups gate of a candidate with the same gain in every group", sound)
    harmed = {}
    for n in (30, 80, 150, 375):
        for change in (-0.03, -0.05, -0.1):
            harmed[f"{n} rows, {change:g}"] = _group_rates(
                (change, *(0.03,) * 7), sizes=(n, *UNEVEN[1:]), group=0
            )
    print_table("A group that loses, among 7 that gain 3 points", harmed)
    return {
        "sound_groups_pass_at_3000_rows": min(
            sound[f"{name} rows, gain 0.03"]["passes"] for name in ("8 x 375", "150 to 750")
        ),
        "sound_groups_fail": max(row["fails"] for row in sound.values()),
        "group_of_150_that_loses_10_fails": harmed["150 rows, -0.1"]["fails"],
        "groups_that_lose_10_pass": max(
            row["passes"] for name, row in harmed.items() if name.endswith("-0.1")
        ),
        "group_of_150_that_loses_the_limit_passes": harmed["150 rows, -0.03"]["passes"],
    }


def swaps() -> Figures:
    """The gates on changed rows: 3% of the predictions of a model change alone, those of the
    candidate *more*."""
    limits = CounterfactualGateConfig()
    robust = RobustnessGateConfig()
    gates: dict[str, Callable[..., Gate]] = {
        "counterfactual": partial(counterfactual_gate, limits=limits, alpha=ALPHA),
        "robustness": partial(robustness_gate, limits=robust, alpha=ALPHA),
    }
    rows = {}
    for (name, gate), n, more in product(
        gates.items(), (200, 500, 1_000, 2_000), (0.0, 0.03, 0.05, 0.1)
    ):
        rows[f"{name}, {n:,} rows, {more:g} more"] = _swap_rates(gate, n=n, more=more)
    print_table("Predictions that a swap or a typing error changes", rows)
    return {
        "sound_swaps_pass_at_500_rows": rows["counterfactual, 500 rows, 0 more"]["passes"],
        "swaps_that_change_5_more_fail_at_500_rows": rows["counterfactual, 500 rows, 0.05 more"][
            "fails"
        ],
        "sound_swaps_fail": max(
            row["fails"] for name, row in rows.items() if name.endswith(" 0 more")
        ),
        "sound_robustness_passes_at_1000_rows": rows["robustness, 1,000 rows, 0 more"]["passes"],
    }


def _states(states: Sequence[State]) -> dict[str, float]:
    passes = states.count(State.PASSES) / len(states)
    fails = states.count(State.FAILS) / len(states)
    return {
        "passes": passes,
        "+-": _error(passes, len(states)),
        "fails": fails,
        "+- ": _error(fails, len(states)),
    }


def _error(rate: float, num: int) -> float:
    """Return the Monte Carlo standard error of a rate."""
    return float(np.sqrt(rate * (1 - rate) / num))


def _table(
    right: NDArray[np.bool_],
    *,
    confidence: FloatArray | None = None,
    clusters: NDArray[np.int64] | None = None,
) -> Predictions:
    """Return the predictions of a model that is right on some of the rows, which have the label
    a."""
    n = len(right)
    scores = right.astype(np.float64)
    confidence = scores if confidence is None else confidence
    outputs = tuple(np.where(right, "a", "b").tolist())
    shared = None if clusters is None else tuple(map(str, clusters.tolist()))
    ids = tuple(map(str, range(n)))
    return Predictions(
        "simulated", ids, ("a",) * n, outputs, scores, confidence, confidence, {}, {}, shared
    )


def _calibration_rates(
    n: int, *, excess: float | None, is_s_shaped: bool = False, size: int = 1
) -> dict[str, float]:
    """Simulate models whose confidence exceeds the probability of a right answer; rows share
    documents of a size."""

    def probabilities(confidence: FloatArray, over: float) -> FloatArray:
        gap = over * np.sin((confidence - 0.3) / 0.7 * 2 * np.pi) if is_s_shaped else over
        return np.clip(confidence - gap, 0.0, 1.0)

    generator = np.random.default_rng((SEED, n))
    many = 0.3 + 0.7 * generator.beta(4, 1.5, 400_000)
    bins = np.minimum((many * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    true_ece = float(
        np.abs(np.bincount(bins, many - probabilities(many, excess or 0.0))).sum()
    ) / len(many)
    codes = np.arange(n) // size
    states = []
    covered = []
    for _ in range(NUM_GATES):
        confidence = 0.3 + 0.7 * generator.beta(4, 1.5, n)
        over = generator.normal(0, 0.4 / np.sqrt(TEMPERATURE_ROWS)) if excess is None else excess
        luck = _latent(generator, codes, correlation=0.3 if size > 1 else 0.0)
        right = norm.cdf(luck) < probabilities(confidence, over)
        table = _table(right, confidence=confidence, clusters=codes if size > 1 else None)
        (bound,) = calibration_gate(table, limits=CalibrationGateConfig(), alpha=ALPHA).bounds
        states.append(bound.state)
        covered.append(bound.interval[0] <= true_ece <= bound.interval[1])
    coverage = {} if excess is None else {"true ECE": true_ece, "coverage": float(np.mean(covered))}
    return _states(states) | coverage


def _group_rates(
    changes: Sequence[float], *, sizes: Sequence[int], size: int = 1, group: int | None = None
) -> dict[str, float]:
    """Return the states of the gate or of one group; rows share documents of a size."""
    generator = np.random.default_rng((SEED, len(sizes), sizes[0]))
    members = np.repeat(np.arange(len(sizes)), sizes)
    change = np.repeat(changes, sizes)
    discordance = np.maximum(DISCORDANCE, np.abs(change))
    codes = np.arange(len(members)) // size
    names = {"group": tuple(map(str, members.tolist()))}
    clusters = codes if size > 1 else None
    states = []
    pooled = []
    for _ in range(NUM_GATES):
        luck = norm.cdf(_latent(generator, codes, correlation=0.3 if size > 1 else 0.0))
        won = luck < (discordance + change) / 2
        lost = luck > 1 - (discordance - change) / 2
        both = ~won & ~lost & (generator.random(len(members)) < 0.8)
        ours, theirs = (
            replace(_table(right | both, clusters=clusters), groups=names) for right in (won, lost)
        )
        result = groups_gate(ours, incumbent=theirs, limits=LIMITS, alpha=ALPHA)
        ordered = sorted(result.bounds, key=lambda bound: int(bound.what.rpartition(" ")[2]))
        states.append(result.state if group is None else ordered[group].state)
        pooled.append(
            _random_effects(
                [Estimate(each.estimate, each.interval, each.n, ALPHA) for each in ordered]
            )
        )
    passed = np.array(pooled)
    rate = float(np.mean(passed.all(axis=1) if group is None else passed[:, group]))
    return _states(states) | {"random effects": rate}


def _random_effects(changes: Sequence[Estimate]) -> NDArray[np.bool_]:
    """Return which groups [G] pass by a normal random-effects model; the spread has a half-normal
    prior (5 points)."""
    gains = np.array([change.value for change in changes])
    errors = np.array([change.standard_error for change in changes])
    spreads = np.linspace(0, 0.3, 121)[:, None]
    weights = 1 / (errors**2 + spreads**2)
    total = weights.sum(axis=1, keepdims=True)
    mean = (weights * gains).sum(axis=1, keepdims=True) / total
    logs = 0.5 * (
        np.log(weights).sum(axis=1)
        - np.log(total[:, 0])
        - (weights * (gains - mean) ** 2).sum(axis=1)
    )
    posterior = np.exp(logs - logs.max()) * np.exp(-0.5 * (spreads[:, 0] / 0.05) ** 2)
    own = spreads**2 * weights
    centre = own * gains + (1 - own) * mean
    spread = np.sqrt(own * errors**2 + (1 - own) ** 2 / total)
    worse = norm.cdf((-LIMITS.max_loss - centre) / spread)
    return np.asarray(posterior @ worse / posterior.sum() < ALPHA / 2)


def _swap_rates(gate: Callable[..., Gate], *, n: int, more: float) -> dict[str, float]:
    generator = np.random.default_rng((SEED, n))
    clean = _table(np.ones(n, dtype=np.bool_))
    ids = tuple(f"{row}|changed" for row in range(n))
    states = []
    for _ in range(NUM_GATES):
        both = generator.random(n) < 0.02
        tables = {}
        for role, share in (("candidate", 0.03 + more), ("incumbent", 0.03)):
            flipped = both | (generator.random(n) < share)
            tables[role] = (clean, replace(_table(~flipped), row_ids=ids))
        states.append(gate(**tables).state)
    return _states(states)


def _latent(
    generator: np.random.Generator, codes: NDArray[np.int64], *, correlation: float
) -> FloatArray:
    """Return standard normal values [N] with this correlation within documents."""
    shared = generator.standard_normal(int(codes.max()) + 1)[codes]
    own = generator.standard_normal(len(codes))
    return np.asarray(np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own)


if __name__ == "__main__":
    main()
