"""Is the verdict honest about itself: equal models fine-tuned at most at alpha, and power what it claims to be.

    python benchmarks/verdict_honesty.py

Simulated tests of many sizes, discordances and accuracies; the seeds are not the one that power is computed
with. Every variant is drawn in turn, in several rounds; a figure is the worst variant's median over the rounds.
"""

import json
from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from evaluation.metrics import midp_values, newcombe_limits
from evaluation.power import Scenario, draw_tables, rows_needed_for_rule, rule_holds, rule_power
from evaluation.predictions import Predictions
from evaluation.verdict import Outcome, Question, decide

ALPHA, MINIMUM_GAIN = 0.05, 0.01
NUM_ROUNDS, NUM_DRAWS, NUM_DECISIONS = 5, 20_000, 40
SIZES = (300, 1000, 2151, 5000)
TRUTHS = ((0.05, 0.9), (0.10, 0.75), (0.20, 0.66))  # discordance, incumbent's accuracy
EXPECTED_GAINS = (0.02, 0.03, 0.05)
# Each bound leaves what simulation itself errs by: three standard errors of a round's rate, the median being nearer.
BOUNDS = {
    "fine_tune_rate_of_equal_models": f"<= {ALPHA}",
    "type_i_error_of_midp": f"<= {ALPHA + 0.005}",
    "interval_coverage": ">= 0.94",
    "power_claimed_less_measured": "<= 0.02",
    "power_at_rows_needed": ">= 0.78",
    "decisions_unlike_the_rule": "<= 0",
}


def main() -> None:
    """Prints the variants, then one line of JSON."""
    equal = [_equal_models(n, truth, seed) for seed in range(NUM_ROUNDS) for n in SIZES for truth in TRUTHS]
    power = [_power(truth, gain, seed) for seed in range(NUM_ROUNDS) for truth in TRUTHS for gain in EXPECTED_GAINS]
    _show("Equal models", equal)
    _show(f"A true gain, the rule asking for {MINIMUM_GAIN:g}", power)
    figures = {
        "fine_tune_rate_of_equal_models": max(_medians(equal, "fine-tuned")),
        "type_i_error_of_midp": max(_medians(equal, "mid-p < alpha")),
        "interval_coverage": min(_medians(equal, "coverage") + _medians(power, "coverage")),
        "power_claimed_less_measured": max(_medians(power, "claimed less measured")),
        "power_at_rows_needed": min(_medians(power, "power at rows needed")),
        "decisions_unlike_the_rule": float(sum(_decisions_unlike_rule(seed) for seed in range(NUM_ROUNDS))),
    }
    result = {
        "benchmark": "verdict_honesty",
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "bounds": BOUNDS,
        "holds": all(_holds(figures[name], bound) for name, bound in BOUNDS.items()),
    }
    print(json.dumps(result))


def _equal_models(n: int, truth: tuple[float, float], seed: int) -> dict[str, float]:
    tables = draw_tables(n, scenario=Scenario(0.0, *truth), num_draws=NUM_DRAWS, seed=seed)
    return {
        "rows": n,
        "discordance": truth[0],
        "accuracy": truth[1],
        "fine-tuned": float(np.mean(rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA))),
        "mid-p < alpha": float(np.mean(midp_values(tables[:, 1], only_other=tables[:, 2]) < ALPHA)),
        "coverage": _coverage(tables, gain=0.0),
    }


def _power(truth: tuple[float, float], gain: float, seed: int) -> dict[str, float]:
    scenario, n, fresh = Scenario(gain, *truth), 2151, 1_000 + seed
    tables = draw_tables(n, scenario=scenario, num_draws=NUM_DRAWS, seed=fresh)
    measured = float(np.mean(rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)))
    claimed = rule_power(n, scenario=scenario, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)
    rows = rows_needed_for_rule(scenario, minimum_gain=MINIMUM_GAIN, alpha=ALPHA).rows
    assert rows is not None
    needed = draw_tables(rows, scenario=scenario, num_draws=NUM_DRAWS, seed=fresh)
    return {
        "discordance": truth[0],
        "true gain": gain,
        "claimed at 2,151": claimed,
        "measured": measured,
        "claimed less measured": abs(claimed - measured),
        "rows needed": rows,
        "power at rows needed": float(np.mean(rule_holds(needed, minimum_gain=MINIMUM_GAIN, alpha=ALPHA))),
        "coverage": _coverage(tables, gain=gain),
    }


def _coverage(tables: NDArray[np.int64], *, gain: float) -> float:
    low, high = newcombe_limits(tables, alpha=ALPHA)
    return float(np.mean((low <= gain) & (gain <= high)))


def _decisions_unlike_rule(seed: int) -> int:
    """Whole decisions, from predictions to outcome, that are not what the simulated rule says of their table."""
    unlike = 0
    for gain in (0.0, 0.03):
        tables = draw_tables(1000, scenario=Scenario(gain, 0.1, 0.7), num_draws=NUM_DECISIONS // 2, seed=seed)
        holds = rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)
        unlike += sum((_outcome(table) is Outcome.FINE_TUNE) != hold for table, hold in zip(tables, holds, strict=True))
    return unlike


def _outcome(table: NDArray[np.int64]) -> Outcome:
    cell, n = np.repeat(np.arange(4), table), int(table.sum())

    def predictions(model: str, right: NDArray[np.bool_]) -> Predictions:
        ids, outputs = tuple(map(str, range(n))), tuple("yes" if hit else "no" for hit in right)
        return Predictions(model, ids, ("yes",) * n, outputs, right.astype(np.float64), *2 * (np.full(n, 0.5),))

    return decide(
        incumbent=predictions("incumbent", cell % 2 == 0),
        candidate=predictions("candidate", cell < 2),
        reference=predictions("reference", np.zeros(n, dtype=bool)),
        question=Question("accuracy", MINIMUM_GAIN, 2 * MINIMUM_GAIN, ALPHA, "simulated", n),
        leaks=(),
        test_sha256="simulated",
    ).outcome


def _variants(rows: Sequence[dict[str, float]]) -> list[list[dict[str, float]]]:
    size = len(rows) // NUM_ROUNDS
    return [list(rows[start::size]) for start in range(size)]


def _medians(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    return [median(row[name] for row in rounds) for rounds in _variants(rows)]


def _show(title: str, rows: Sequence[dict[str, float]]) -> None:
    table = Table(title=f"{title} (medians of {NUM_ROUNDS} rounds of {NUM_DRAWS:,} tests)")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for rounds in _variants(rows):
        values = [median(row[name] for row in rounds) for name in rows[0]]
        table.add_row(*(f"{value:,.4g}" if value < 1 else f"{value:,.0f}" for value in values))
    Console().print(table)


def _holds(value: float, bound: str) -> bool:
    sign, limit = bound.split()
    return value <= float(limit) if sign == "<=" else value >= float(limit)


if __name__ == "__main__":
    main()
