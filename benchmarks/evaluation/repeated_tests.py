"""False improvements in repeated tests, and error rates of a year of monthly re-evaluations.

    python -m benchmarks.evaluation.repeated_tests [known_rows] [small_level] [reevaluations]

Known rows: twelve equal candidates are tested on the same rows, or on rows of which half are in all
tests. One equal candidate is tested again after each of ten additions of rows. A figure is the
share of these series with any false improvement. It is at most the sum of half of the levels,
because each level is two-sided. "Uncorrected" is the share if every test has the full alpha. "Best
again" is the share of false improvements if the last test does not compare a new candidate but the
one with the largest gain in the tests before.

Small level: how often are equal models significant at 0.004 by macro-F1, whose t statistic is
approximate? Re-evaluations: each month brings newly audited rows.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.harness import Figures, print_table, run_parts
from benchmarks.simulated import (
    ALPHA,
    MARGIN,
    answers,
    serving_usage,
    simulated_protocol,
)
from tailorbird.evaluation.predictions import ModelPredictions
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect
from tailorbird.evaluation.statistics.confidence_sequence import log_wealth
from tailorbird.evaluation.statistics.paired import midp_values, newcombe_limits
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.operate.reevaluation_verdict import decide_reevaluation
from tailorbird.registry.test_set_ledger import Hashes, record_test_access

LEVEL = float(np.log(2 / ALPHA))
NUM_SERIES = 4_000
CHUNK = 100
NUM_CANDIDATES = 12
NUM_ROWS = 1_500
MORE_ROWS = 500
NUM_ADDITIONS = 10
SHARES = (1.0, 0.5)
SMALL_LEVEL = 0.004
SMALL_SIZES = (200, 1_000)
NUM_SMALL = 4_000
CLASS_SHARES = (0.45, 0.25, 0.15, 0.10, 0.05)
NUM_YEARS = 10_000
MONTHS = 12
ROWS_A_MONTH = 300
DISCORDANCES = (0.08, 0.12, 0.2)
NUM_DECISIONS = 40
VALUES = np.array([-1.0, 0.0, 1.0])
BOUNDS = {
    "rate_in_12_tests_of_the_same_rows": f"<= {ALPHA}",
    "largest_rate_above_the_sum_of_half_of_the_levels": "<= 0",
    "largest_rate_if_the_best_candidate_is_tested_again": f"<= {ALPHA}",
    "rate_of_an_equal_candidate_after_10_additions": f"<= {ALPHA}",
    "rate_of_equal_models_significant_at_0.004_by_macro_f1": "<= 0.006",
    "withdrawn at +1": f"<= {ALPHA}",
    "renewed at 0": f"<= {ALPHA}",
    "cheaper, withdrawn at 0": f"<= {ALPHA}",
    "renewed at +3, month 12": ">= 0.97",
    "withdrawn at -3": ">= 0.97",
    "decisions_unlike_the_rule": "<= 0",
}
Indices = NDArray[np.int64]
Months = tuple[NDArray[np.bool_], NDArray[np.bool_]]
"""In which months [years, months] a verdict is renewed, and in which it is withdrawn."""


def main() -> None:
    """Print the tables, then one line of JSON."""
    run_parts("repeated_tests", (known_rows, small_level, reevaluations), bounds=BOUNDS)


def known_rows() -> Figures:
    """Shares of series of tests of equal candidates with any false improvement."""
    shared = {f"{share:.0%} known": _shared_rows(share) for share in SHARES}
    appended = _additions()
    rows = shared | {"10 additions": appended}
    title = f"Any false improvement in {NUM_CANDIDATES} tests ({NUM_SERIES:,} series)"
    print_table(title, rows, num_draws=NUM_SERIES)
    above = [row["any"] - row["half of levels"] for row in shared.values()]
    again = [row["best again"] for row in shared.values()]
    return {
        "rate_in_12_tests_of_the_same_rows": shared["100% known"]["any"],
        "uncorrected_rate_in_12_tests_of_the_same_rows": shared["100% known"]["uncorrected"],
        "largest_rate_above_the_sum_of_half_of_the_levels": max(above),
        "largest_rate_if_the_best_candidate_is_tested_again": max(again),
        "rate_of_an_equal_candidate_after_10_additions": appended["any"],
        "uncorrected_rate_of_an_equal_candidate_after_10_additions": appended["uncorrected"],
    }


def _shared_rows(share: float) -> dict[str, float]:
    """Return the shares of series if a share of the rows is in all tests."""
    num_known = round(share * NUM_ROWS)
    numbers = np.arange(NUM_ROWS, dtype=np.uint64)
    further = np.uint64(NUM_ROWS) * (numbers >= num_known)
    levels = _levels([numbers + further * np.uint64(test) for test in range(NUM_CANDIDATES)])
    generator = np.random.default_rng(num_known)
    chunks = [_tests(generator, num_known=num_known) for _ in range(NUM_SERIES // CHUNK)]
    *tables, again = np.concatenate(chunks, axis=1)
    best_again = float(_proven(again, alpha=levels[-1]).mean())
    return _rates(tables, levels=levels) | {"best again": best_again}


def _tests(generator: np.random.Generator, *, num_known: int) -> Indices:
    """Return the paired counts [tests, series, 4] of each candidate, and of the best one in the
    last test."""
    right = _right(generator, num_rows=num_known, num_models=1 + NUM_CANDIDATES)
    known = np.stack([_cells(right, model=1 + test) for test in range(NUM_CANDIDATES)])
    fresh = []
    for _ in range(NUM_CANDIDATES):
        fresh_right = _right(generator, num_rows=NUM_ROWS - num_known, num_models=2)
        fresh.append(_cells(fresh_right, model=1))
    tables = known + np.stack(fresh)
    best = (tables[:-1, :, 1] - tables[:-1, :, 2]).argmax(axis=0)
    again = known[best, np.arange(CHUNK)] + fresh[-1]
    return np.concatenate([tables, again[None]])


def _additions() -> dict[str, float]:
    """Return shares of series of tests of an equal candidate, if each test has more rows."""
    sizes = [NUM_ROWS + MORE_ROWS * test for test in range(NUM_ADDITIONS)]
    generator = np.random.default_rng(len(sizes))
    chunks = []
    for _ in range(NUM_SERIES // CHUNK):
        right = _right(generator, num_rows=max(sizes), num_models=2)
        chunks.append(np.stack([_cells(right[:, :size], model=1) for size in sizes]))
    levels = _levels([np.arange(size, dtype=np.uint64) for size in sizes])
    return _rates(np.concatenate(chunks, axis=1), levels=levels)


def _rates(tables: Sequence[Indices] | Indices, *, levels: Sequence[float]) -> dict[str, float]:
    """Return the shares of series with a false improvement in any test, from tables [tests, series,
    4]."""
    corrected = [_proven(cells, alpha=level) for cells, level in zip(tables, levels, strict=True)]
    uncorrected = [_proven(cells, alpha=ALPHA) for cells in tables]
    return {
        "any": float(np.any(corrected, axis=0).mean()),
        "half of levels": sum(levels) / 2,
        "uncorrected": float(np.any(uncorrected, axis=0).mean()),
    }


def _proven(cells: Indices, *, alpha: float) -> NDArray[np.bool_]:
    low, _ = newcombe_limits(cells, alpha=alpha)
    gain = (cells[..., 1] - cells[..., 2]) / cells.sum(axis=-1)
    significant = midp_values(cells[..., 1], only_other=cells[..., 2]) < alpha
    return np.asarray(significant & (low > 0) & (gain >= MARGIN))


def _levels(sets: Sequence[Hashes]) -> list[float]:
    """Return the level of each test, from the hashes of its rows."""
    levels = []
    with tempfile.TemporaryDirectory() as folder:
        record = partial(record_test_access, f"{Path(folder).as_uri()}/task", protocol="p", run="r")
        for test, rows in enumerate(sets):
            levels.append(ALPHA * record(rows=rows, models=[f"{test}"]).alpha_share)
    return levels


def _right(generator: np.random.Generator, *, num_rows: int, num_models: int) -> NDArray[np.bool_]:
    """Return which model is right [series, rows, models]; the first is the incumbent, with an
    accuracy of about 0.75.

    A row has a difficulty that all models share, and each model also has independent errors: a
    discordance of 0.15.
    """
    shared = generator.standard_normal((CHUNK, num_rows, 1), dtype=np.float32)
    single = generator.standard_normal((CHUNK, num_rows, num_models), dtype=np.float32)
    return np.asarray(np.sqrt(0.8) * shared + np.sqrt(0.2) * single > -0.6745)


def _cells(right: NDArray[np.bool_], *, model: int) -> Indices:
    """Return the four paired counts [series, 4] in the order of `PairedCounts`."""
    first = right[..., model]
    second = right[..., 0]
    cells = (first & second, first & ~second, ~first & second, ~first & ~second)
    return np.stack([cell.sum(axis=1) for cell in cells], axis=-1)


def small_level() -> Figures:
    """The share of tests of equal models by macro-F1 that are significant at a small level."""
    rates = {}
    for num_rows in SMALL_SIZES:
        generator = np.random.default_rng((6, num_rows))
        significant = 0
        for _ in range(NUM_SMALL):
            labels = generator.choice(5, num_rows, p=CLASS_SHARES)
            shared = generator.standard_normal(num_rows)
            tables = []
            for _ in range(2):
                latent = 0.8**0.5 * shared + 0.2**0.5 * generator.standard_normal(num_rows)
                wrong = (labels + generator.integers(1, 5, num_rows)) % 5
                tables.append(answers(latent < norm.ppf(0.75), labels=labels, wrong=wrong))
            first, second = tables
            effect = class_metric_effect(first, other=second, metric="macro_f1", alpha=SMALL_LEVEL)
            significant += effect.p_value < SMALL_LEVEL
        rates[f"{num_rows:,} rows"] = {"significant": significant / NUM_SMALL}
    title = f"Equal models by macro-F1, level {SMALL_LEVEL}, {NUM_SMALL:,} tests"
    print_table(title, rates, num_draws=NUM_SMALL)
    largest = max(row["significant"] for row in rates.values())
    return {"rate_of_equal_models_significant_at_0.004_by_macro_f1": largest}


def reevaluations() -> Figures:
    """Shares of years in which a champion is renewed or withdrawn: the largest of all discordances
    if it is an error, and that at a discordance of 0.12 otherwise."""
    years = {f"discordance {rate:g}": _years(rate) for rate in DISCORDANCES}
    print_table(f"A year with {ROWS_A_MONTH} audited rows a month ({NUM_YEARS:,} years)", years)
    figures = {}
    for name, usual in years["discordance 0.12"].items():
        is_power = BOUNDS.get(name, "").startswith(">=")
        figures[name] = usual if is_power else max(row[name] for row in years.values())
    return figures | {"decisions_unlike_the_rule": float(_decisions_unlike_rule())}


def _years(discordance: float) -> dict[str, float]:
    figures = {}
    for name, gain in (("-3", -0.03), ("0", 0.0), ("+1", 0.01), ("+3", 0.03)):
        renewed, withdrawn = _decided(_monthly(gain, discordance))
        figures[f"renewed at {name}"] = float(renewed.any(axis=1).mean())
        figures[f"withdrawn at {name}"] = float(withdrawn.any(axis=1).mean())
    figures["renewed at +3, month 12"] = float(renewed[:, -1].mean())
    _, withdrawn = _decided_for_cost(_monthly(0.0, discordance))
    return figures | {"cheaper, withdrawn at 0": float(withdrawn.any(axis=1).mean())}


def _monthly(gain: float, discordance: float) -> Indices:
    """Return the monthly numbers of losses, ties and wins of a champion with a true gain, [years,
    months, 3]."""
    shares = [(discordance - gain) / 2, 1 - discordance, (discordance + gain) / 2]
    generator = np.random.default_rng((int(1_000 * discordance), int(1_000 * (1 + gain))))
    return generator.multinomial(ROWS_A_MONTH, shares, size=(NUM_YEARS, MONTHS))


def _decided(months: Indices) -> Months:
    """Return the decisions about a champion of known cost."""
    counts = months.cumsum(axis=1)
    gain = (counts[..., 2] - counts[..., 0]) / counts.sum(axis=-1)
    better = log_wealth(VALUES, counts=counts, mean=0.0) >= LEVEL
    out_of_reach = log_wealth(VALUES, counts=counts[..., ::-1], mean=-MARGIN) >= LEVEL
    return better & (gain >= MARGIN), out_of_reach & ~better


def _decided_for_cost(months: Indices) -> Months:
    """Return the decisions about a champion that is cheaper, with the minimum gain as the
    margin."""
    counts = months.cumsum(axis=1)
    not_inferior = log_wealth(VALUES, counts=counts, mean=-MARGIN) >= LEVEL
    inferior = log_wealth(VALUES, counts=counts[..., ::-1], mean=MARGIN) >= LEVEL
    return not_inferior, inferior & ~not_inferior


def _decisions_unlike_rule() -> int:
    """Return the number of full decisions, from predictions to result, that differ from the rule on
    the same counts."""
    different = 0
    cheaper = serving_usage({"incumbent": 2.0, "candidate": 1.0})
    cases = [(gain, False) for gain in (-0.03, 0.01, 0.03)]
    cases += [(gain, True) for gain in (-0.03, 0.0)]
    for gain, is_cheaper in cases:
        months = _monthly(gain, 0.12)[:NUM_DECISIONS]
        renewed, withdrawn = (_decided_for_cost if is_cheaper else _decided)(months)
        costs = cheaper if is_cheaper else None
        for year, month in enumerate(np.random.default_rng(3).integers(0, MONTHS, NUM_DECISIONS)):
            counts = months[year, : month + 1].sum(axis=0)
            row = np.repeat([-1, 0, 1], counts)
            models = {
                "incumbent": ModelPredictions(answers(row < 0)),
                "candidate": ModelPredictions(answers(row > 0)),
            }
            inputs = VerdictInputs(models, "simulated", costs=costs)
            protocol = simulated_protocol(len(row))
            holds = decide_reevaluation(inputs, protocol=protocol, number=1).holds
            different += (holds is True) != renewed[year, month]
            different += (holds is False) != withdrawn[year, month]
    return different


if __name__ == "__main__":
    main()
