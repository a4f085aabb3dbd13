"""Coverage of intervals and error rates of the gates, each rate with its Monte Carlo error.

    python -m benchmarks.evaluation.intervals_and_gates [documents] [calibration] [groups]
    [robustness]

Documents: coverage of 95% intervals of a gain over rows that share documents. Calibration: coverage
of the interval of the debiased calibration error, and how often the gate passes and fails. Groups:
how often the gate passes and fails a candidate that gains the same in every group, or loses in one.
Robustness: how often the gate passes and fails.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.harness import Figures, print_table, run_parts
from benchmarks.simulated import ALPHA, answers
from tailorbird.config.evaluation import (
    REGULATED_ECE,
    CalibrationGateConfig,
    RobustnessGateConfig,
    SubgroupGateConfig,
)
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.behavioral import robustness_gate
from tailorbird.evaluation.gates.calibration import NUM_BINS, calibration_gate
from tailorbird.evaluation.gates.subgroups import groups_gate
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect
from tailorbird.evaluation.statistics.documents import Documents

SEED = 2026
NUM_GATES = 400
NUM_EFFECTS = 4_000
NUM_MACRO_F1 = 1_500
DOCUMENT_SIZES = ("even", "lognormal", "pareto")
DOCUMENT_GAIN = 0.02
DOCUMENT_DISCORDANCE = 0.2
GROUP_DISCORDANCE = 0.15
SOUND_GROUPS = {"8 x 375": (375,) * 8, "12 x 250": (250,) * 12, "8 x 125": (125,) * 8}
FURTHER_GROUPS = (200, 250, 300, 350, 450, 550, 750)
TEMPERATURE_ROWS = 1_500
BOUNDS = {
    "lowest_coverage_of_documents": ">= 0.92",
    "mean_coverage_of_documents": ">= 0.93",
    "lowest_coverage_of_macro_f1_by_documents": ">= 0.92",
    "lowest_coverage_of_ece": ">= 0.93",
    "calibrated_passes_at_1000_rows": ">= 0.5",
    "ece_of_8_points_fails_at_2000_rows": ">= 0.8",
    "ece_at_the_limit_fails": "<= 0.05",
    "sound_groups_pass_at_3000_rows": ">= 0.6",
    "sound_groups_fail": "<= 0.08",
    "group_of_150_that_loses_10_fails": ">= 0.9",
    "groups_that_lose_10_pass": "<= 0.06",
    "sound_robustness_passes": ">= 0.5",
    "sound_robustness_fails": "<= 0.05",
}


def main() -> None:
    """Print a table per part, then one line of JSON."""
    run_parts("intervals_and_gates", (documents, calibration, groups, robustness), bounds=BOUNDS)


def documents() -> Figures:
    """Coverage of the interval of a gain over documents, of means and of macro-F1."""
    rows = {}
    for sizes, num, correlation in product(DOCUMENT_SIZES, (10, 30, 100, 1_000), (0.03, 0.3, 0.6)):
        coverage = partial(_coverage, sizes, num=num, correlation=correlation)
        rows[f"{sizes}, {num}, icc {correlation}"] = {
            "continuous": coverage(is_accuracy=False),
            "accuracy": coverage(is_accuracy=True),
        }
    print_table("Coverage of the 95% interval over documents", rows, num_draws=NUM_EFFECTS)
    macro = {}
    for sizes, num in product(DOCUMENT_SIZES, (10, 50)):
        macro[f"{sizes}, {num}"] = {"macro-F1": _macro_f1_coverage(sizes, num=num)}
    title = "Coverage of the 95% interval of macro-F1 over documents, equal models"
    print_table(title, macro, num_draws=NUM_MACRO_F1)
    rates = [rate for row in rows.values() for rate in row.values()]
    return {
        "lowest_coverage_of_documents": min(rates),
        "mean_coverage_of_documents": float(np.mean(rates)),
        "lowest_coverage_of_macro_f1_by_documents": min(row["macro-F1"] for row in macro.values()),
    }


def _document_sizes(generator: np.random.Generator, sizes: str, *, num: int) -> NDArray[np.int64]:
    """Return documents of 20 rows each, or of sizes from a lognormal or a Pareto distribution."""
    if sizes == "lognormal":
        return np.maximum(1, generator.lognormal(2.0, 1.2, num).astype(np.int64))
    if sizes == "pareto":
        return np.minimum(1 + (5 * generator.pareto(1.1, num)).astype(np.int64), 1_000)
    return np.full(num, 20)


def _coverage(sizes: str, *, num: int, correlation: float, is_accuracy: bool) -> float:
    """Return the coverage over tests whose documents differ in size from test to test, from sums by
    document."""
    generator = np.random.default_rng((SEED, num, DOCUMENT_SIZES.index(sizes)))
    rows = np.stack([_document_sizes(generator, sizes, num=num) for _ in range(NUM_EFFECTS)])
    shared = np.sqrt(correlation) * generator.standard_normal(rows.shape)
    single = np.sqrt(1 - correlation)
    if is_accuracy:
        half_won = (DOCUMENT_DISCORDANCE + DOCUMENT_GAIN) / 2
        half_lost = (DOCUMENT_DISCORDANCE - DOCUMENT_GAIN) / 2
        share_won = norm.cdf((norm.ppf(half_won) - shared) / single)
        share_lost = norm.sf((norm.isf(half_lost) - shared) / single)
        wins = generator.binomial(rows, share_won)
        losses = generator.binomial(rows - wins, np.clip(share_lost / (1 - share_won), 0, 1))
        sums = (wins - losses).astype(np.float64)
    else:
        noise = single * np.sqrt(rows) * generator.standard_normal(rows.shape)
        sums = DOCUMENT_GAIN * rows + 0.3 * (shared * rows + noise)

    num_covered = 0
    for sums_of_test, rows_of_test in zip(sums, rows, strict=True):
        grouped = Documents(np.arange(num), rows_of_test.astype(np.float64))
        error = np.sqrt(grouped.mean_covariance(sums_of_test[:, None])[0, 0])
        half = t.ppf(1 - ALPHA / 2, grouped.degrees_of_freedom) * error
        gain = sums_of_test.sum() / rows_of_test.sum()
        num_covered += abs(gain - DOCUMENT_GAIN) <= half
    return num_covered / len(rows)


def _macro_f1_coverage(sizes: str, *, num: int) -> float:
    generator = np.random.default_rng((SEED, num))
    covered = 0
    for _ in range(NUM_MACRO_F1):
        codes = np.repeat(np.arange(num), _document_sizes(generator, sizes, num=num))
        labels = generator.choice(4, len(codes), p=(0.45, 0.3, 0.15, 0.1))
        clusters = tuple(codes.astype(str).tolist())
        tables = []
        for _ in range(2):
            right = _latent(generator, codes) < norm.ppf(0.75)
            wrong = (labels + 1) % 4
            tables.append(answers(right, labels=labels, wrong=wrong, clusters=clusters))
        effect = class_metric_effect(tables[0], other=tables[1], metric="macro_f1", alpha=ALPHA)
        low, high = effect.interval
        covered += low <= 0 <= high
    return covered / NUM_MACRO_F1


def calibration() -> Figures:
    """The debiased ECE: coverage of its interval, and the state of the gate.

    The confidence of a *sound* model is off by the error of a temperature that is fitted on
    `TEMPERATURE_ROWS` rows.
    """
    sound = {n: _calibration_rates(n, excess=None) for n in (1_000, 2_000)}
    rows = {f"sound, {n:,} rows": rates for n, rates in sound.items()}
    off = {}
    for excess, n in product((0.03, 0.05, 0.08), (500, 2_000)):
        off[excess, n] = _calibration_rates(n, excess=excess)
        rows[f"ECE {excess:g}, {n:,} rows"] = off[excess, n]
    print_table(
        "The calibration gate of a regulated recipe: debiased ECE at most 0.05",
        rows,
        num_draws=NUM_GATES,
    )
    return {
        "lowest_coverage_of_ece": min(rates["coverage"] for rates in off.values()),
        "calibrated_passes_at_1000_rows": sound[1_000]["passes"],
        "ece_of_8_points_fails_at_2000_rows": off[0.08, 2_000]["fails"],
        "ece_at_the_limit_fails": max(off[0.05, n]["fails"] for n in (500, 2_000)),
    }


def _calibration_rates(n: int, *, excess: float | None) -> dict[str, float]:
    """Simulate models whose confidence exceeds the probability of a right answer."""
    generator = np.random.default_rng((SEED, n))
    many = 0.3 + 0.7 * generator.beta(4, 1.5, 400_000)
    bins = np.minimum((many * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    gaps = many - np.clip(many - (excess or 0.0), 0.0, 1.0)
    true_ece = float(np.abs(np.bincount(bins, gaps)).sum()) / len(many)
    states = []
    covered = []
    for _ in range(NUM_GATES):
        confidence = 0.3 + 0.7 * generator.beta(4, 1.5, n)
        over = excess
        if over is None:
            over = generator.normal(0, 0.4 / np.sqrt(TEMPERATURE_ROWS))
        right = _luck(generator, n) < np.clip(confidence - over, 0.0, 1.0)
        table = answers(right, confidences=confidence)
        limits = CalibrationGateConfig(max_ece=REGULATED_ECE)
        gate = calibration_gate(table, incumbent=table, limits=limits, alpha=ALPHA)
        (bound,) = gate.bounds
        states.append(bound.state)
        covered.append(bound.interval[0] <= true_ece <= bound.interval[1])
    rates = _rates(states)
    if excess is not None:
        rates |= {"true ECE": true_ece, "coverage": float(np.mean(covered))}
    return rates


def groups() -> Figures:
    """Error rates of the groups gate on sound and on harmful candidates."""
    sound = {}
    for (name, sizes), gain in product(SOUND_GROUPS.items(), (0.03, 0.0)):
        sound[f"{name} rows, gain {gain:g}"] = _group_rates((gain,) * len(sizes), sizes=sizes)
    title = "The groups gate of a candidate with the same gain in every group"
    print_table(title, sound, num_draws=NUM_GATES)
    harmed = {}
    for n in (30, 80, 150, 375):
        changes = (-0.1, *(0.03,) * len(FURTHER_GROUPS))
        rates = _group_rates(changes, sizes=(n, *FURTHER_GROUPS), is_first_group=True)
        harmed[f"{n} rows"] = rates
    title = "A group that loses 10 points, among 7 that gain 3 points"
    print_table(title, harmed, num_draws=NUM_GATES)
    return {
        "sound_groups_pass_at_3000_rows": sound["8 x 375 rows, gain 0.03"]["passes"],
        "sound_groups_fail": max(row["fails"] for row in sound.values()),
        "group_of_150_that_loses_10_fails": harmed["150 rows"]["fails"],
        "groups_that_lose_10_pass": max(row["passes"] for row in harmed.values()),
    }


def _group_rates(
    changes: Sequence[float], *, sizes: Sequence[int], is_first_group: bool = False
) -> dict[str, float]:
    """Return the states of the gate, or of the first group."""
    generator = np.random.default_rng((SEED, len(sizes), sizes[0]))
    members = np.repeat(np.arange(len(sizes)), sizes)
    change = np.repeat(changes, sizes)
    discordance = np.maximum(GROUP_DISCORDANCE, np.abs(change))
    names = {"group": tuple(map(str, members.tolist()))}
    states = []
    for _ in range(NUM_GATES):
        luck = _luck(generator, len(members))
        won = luck < (discordance + change) / 2
        lost = luck > 1 - (discordance - change) / 2
        both = ~won & ~lost & (generator.random(len(members)) < 0.8)
        candidate, incumbent = (answers(right | both, groups=names) for right in (won, lost))
        gate = groups_gate(candidate, incumbent=incumbent, limits=SubgroupGateConfig(), alpha=ALPHA)
        state = gate.state
        if is_first_group:
            (state,) = (bound.state for bound in gate.bounds if bound.what.endswith(" 0"))
        states.append(state)
    return _rates(states)


def robustness() -> Figures:
    """Error rates of the robustness gate."""
    sound = _robustness_rates(more=0.0)
    rows = {"sound": sound, "loses 3 points more": _robustness_rates(more=0.03)}
    title = "Predictions that a typing error changes, 1,000 rows"
    print_table(title, rows, num_draws=NUM_GATES)
    return {"sound_robustness_passes": sound["passes"], "sound_robustness_fails": sound["fails"]}


def _robustness_rates(*, more: float) -> dict[str, float]:
    """Return the states of the gate if errors change 3% of the incumbent's predictions alone, and
    `more` of the candidate's."""
    n = 1_000
    generator = np.random.default_rng((SEED, n))
    clean = answers(np.ones(n, dtype=np.bool_))
    ids = tuple(f"{row}|changed" for row in range(n))
    states = []
    for _ in range(NUM_GATES):
        both = generator.random(n) < 0.02
        candidate, incumbent = (
            (clean, answers(~both & (generator.random(n) >= share), row_ids=ids))
            for share in (0.03 + more, 0.03)
        )
        limits = RobustnessGateConfig()
        tables = {"candidate": candidate, "incumbent": incumbent}
        gate = robustness_gate(**tables, limits=limits, alpha=ALPHA)
        states.append(gate.state)
    return _rates(states)


def _rates(states: Sequence[State]) -> dict[str, float]:
    return {
        "passes": states.count(State.PASSES) / len(states),
        "fails": states.count(State.FAILS) / len(states),
    }


def _latent(generator: np.random.Generator, codes: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return standard normal values [N] with a correlation of 0.3 within documents."""
    shared = generator.standard_normal(int(codes.max()) + 1)[codes]
    single = generator.standard_normal(len(codes))
    return np.asarray(np.sqrt(0.3) * shared + np.sqrt(0.7) * single)


def _luck(generator: np.random.Generator, n: int) -> NDArray[np.float64]:
    """Return uniform values [N]."""
    _, latent = generator.standard_normal((2, n))  # the stream of the documented figures
    return np.asarray(norm.cdf(latent))


if __name__ == "__main__":
    main()
