"""Error rates of the verdict, by simulation: false FINE_TUNE verdicts, interval coverage and power.

    python -m benchmarks.evaluation.verdict_error_rates

The simulated tests have many sizes, discordances and accuracies, and the errors of the two models are correlated as in
real tests. The seeds differ from the seed of the power computation. A figure is the median over several rounds, of the
worst variant.

- Winner's curse: of 20 candidates that are as good as the incumbent, the best on 1,500 validation rows is tested, as in
  the whole protocol.
- Macro-F1, whose interval and p-value come from a bootstrap: equal models predict five classes, the rarest with 5% of
  the rows.
"""

import json
from collections.abc import Sequence
from statistics import mean, median

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.rounds import holds
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.paired import compare, midp_values, newcombe_limits
from tailorbird.evaluation.statistics.power import Scenario, draw_tables, rows_needed_for_rule, rule_holds, rule_power
from tailorbird.evaluation.verdict.decide import decide
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.rules import Outcome

ALPHA, MINIMUM_GAIN = 0.05, 0.01
NUM_ROUNDS, NUM_DRAWS, NUM_DECISIONS = 5, 20_000, 40
SIZES = (100, 300, 1000, 3000)
NUM_EQUAL, NUM_VALIDATION, NUM_PROTOCOLS = 20, 1500, 400
CLASS_SHARES, NUM_BOOTSTRAPS = (0.45, 0.25, 0.15, 0.10, 0.05), 200
TRUTHS = ((0.05, 0.9), (0.10, 0.75), (0.20, 0.66))  # discordance, incumbent's accuracy
EXPECTED_GAINS = (0.02, 0.03, 0.05)
# Newcombe's interval is conservative if there are few discordant rows (coverage 0.977 at 5 of 100), so the upper bound
# of the coverage applies to the mean over sizes. All bounds except those of alpha allow for the simulation error.
BOUNDS = {
    "fine_tune_rate_of_equal_models": f"<= {ALPHA}",
    "type_i_error_of_midp": f"<= {ALPHA + 0.005}",
    "lowest_interval_coverage": ">= 0.94",
    "mean_interval_coverage": "<= 0.96",
    "power_claimed_less_measured": "<= 0.03",
    "power_at_rows_needed": ">= 0.78",
    "decisions_unlike_the_rule": "<= 0",
    "fine_tune_rate_of_the_best_of_20": f"<= {ALPHA}",
    "fine_tune_rate_of_equal_models_by_macro_f1": f"<= {ALPHA}",
}


def main() -> None:
    """Print the variants, then one line of JSON."""
    equal = [_equal_models(n, truth, seed) for seed in range(NUM_ROUNDS) for n in SIZES for truth in TRUTHS]
    power = [
        _power(n, truth, gain, seed)
        for seed in range(NUM_ROUNDS)
        for n in SIZES
        for truth in TRUTHS
        for gain in EXPECTED_GAINS
    ]
    cursed = [_best_of_equals(n, seed) for seed in range(NUM_ROUNDS) for n in SIZES]
    by_macro_f1 = [_equal_by_macro_f1(n, seed) for seed in range(NUM_ROUNDS) for n in SIZES]
    _print_table("Equal models", equal)
    _print_table("Equal models of five classes, by macro-F1", by_macro_f1, num_tests=NUM_BOOTSTRAPS)
    _print_table(
        f"The best of {NUM_EQUAL} equal candidates on {NUM_VALIDATION:,} validation rows",
        cursed,
        num_tests=NUM_PROTOCOLS,
    )
    _print_table(f"A true gain, with a minimum gain of {MINIMUM_GAIN:g}", power)
    coverage = _medians(equal, "coverage") + _medians(power, "coverage")
    figures = {
        "fine_tune_rate_of_equal_models": max(_medians(equal, "fine-tuned")),
        "type_i_error_of_midp": max(_medians(equal, "mid-p < alpha")),
        "lowest_interval_coverage": min(coverage),
        "mean_interval_coverage": mean(coverage),
        "power_claimed_less_measured": max(_medians(power, "claimed less measured")),
        "power_at_rows_needed": min(_medians(power, "power at rows needed")),
        "decisions_unlike_the_rule": float(sum(_decisions_unlike_rule(seed) for seed in range(NUM_ROUNDS))),
        "fine_tune_rate_of_the_best_of_20": max(_medians(cursed, "fine-tuned")),
        "fine_tune_rate_of_equal_models_by_macro_f1": max(_medians(by_macro_f1, "fine-tuned")),
        "lowest_interval_coverage_of_macro_f1": min(_medians(by_macro_f1, "coverage")),
    }
    result = {
        "benchmark": "verdict_error_rates",
        "figures": {name: round(value, 4) for name, value in figures.items()},
        "bounds": BOUNDS,
        "holds": all(holds(figures[name], bound) for name, bound in BOUNDS.items()),
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


def _power(n: int, truth: tuple[float, float], gain: float, seed: int) -> dict[str, float]:
    scenario, fresh = Scenario(gain, *truth), 1_000 + seed
    tables = draw_tables(n, scenario=scenario, num_draws=NUM_DRAWS, seed=fresh)
    measured = float(np.mean(rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)))
    claimed = rule_power(n, scenario=scenario, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)
    rows = rows_needed_for_rule(scenario, minimum_gain=MINIMUM_GAIN, alpha=ALPHA).rows
    assert rows is not None
    needed = draw_tables(rows, scenario=scenario, num_draws=NUM_DRAWS, seed=fresh)
    return {
        "rows": n,
        "discordance": truth[0],
        "true gain": gain,
        "claimed": claimed,
        "measured": measured,
        "claimed less measured": abs(claimed - measured),
        "rows needed": rows,
        "power at rows needed": float(np.mean(rule_holds(needed, minimum_gain=MINIMUM_GAIN, alpha=ALPHA))),
        "coverage": _coverage(tables, gain=gain),
    }


def _best_of_equals(n: int, seed: int) -> dict[str, float]:
    """Apply the rule to the test rows of the candidate with the best validation score of equally good candidates.

    A row has a difficulty that all models share, and each model also has independent errors. All models have the same
    expected accuracy.
    """
    generator = np.random.default_rng((seed, n))
    tables = np.empty((NUM_PROTOCOLS, 4), dtype=np.int64)
    gains = np.empty(NUM_PROTOCOLS)
    for protocol in range(NUM_PROTOCOLS):
        validation = _right(generator, num_rows=NUM_VALIDATION, num_models=NUM_EQUAL + 1)
        accuracies = validation.mean(0)
        best = int(accuracies[1:].argmax()) + 1
        gains[protocol] = accuracies[best] - accuracies[0]
        test = _right(generator, num_rows=n, num_models=NUM_EQUAL + 1)
        cells = 2 * (1 - test[:, best].astype(int)) + (test[:, best] == test[:, 0])
        counts = np.bincount(cells, minlength=4)  # correct: 1 both, 0 candidate only, 2 incumbent only, 3 neither
        tables[protocol] = counts[[1, 0, 2, 3]]
    return {
        "rows": n,
        "apparent gain on validation": float(gains.mean()),
        "discordance": float((tables[:, 1] + tables[:, 2]).mean() / n),
        "fine-tuned": float(np.mean(rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA))),
    }


def _equal_by_macro_f1(n: int, seed: int) -> dict[str, float]:
    """Return rates over tests with n rows, for two equally good models with correlated errors."""
    generator = np.random.default_rng((seed, n, len(CLASS_SHARES)))
    classes = np.array([str(number) for number in range(len(CLASS_SHARES))])
    comparisons = []
    for _ in range(NUM_BOOTSTRAPS):
        truth = generator.choice(len(classes), n, p=CLASS_SHARES)
        wrong = (truth + generator.integers(1, len(classes), n)) % len(classes)  # the same for both models
        right = _right(generator, num_rows=n, num_models=2)
        candidate, incumbent = (
            _answers(name, classes[truth], outputs=classes[np.where(right[:, column], truth, wrong)])
            for column, name in enumerate(("candidate", "incumbent"))
        )
        comparisons.append(compare(candidate, other=incumbent, metric="macro_f1", alpha=ALPHA))
    gained = [
        result.p_value < ALPHA and result.interval[0] > 0 and result.gain >= MINIMUM_GAIN for result in comparisons
    ]
    return {
        "rows": n,
        "fine-tuned": float(np.mean(gained)),
        "p < alpha": float(np.mean([result.p_value < ALPHA for result in comparisons])),
        "coverage": float(np.mean([result.interval[0] <= 0 <= result.interval[1] for result in comparisons])),
    }


def _right(generator: np.random.Generator, *, num_rows: int, num_models: int) -> NDArray[np.bool_]:
    """Return which model is correct on which row, bool [rows, models], each with a probability of about 0.75."""
    shared = generator.standard_normal((num_rows, 1))
    own = generator.standard_normal((num_rows, num_models))
    return np.asarray(np.sqrt(0.8) * shared + np.sqrt(0.2) * own > -0.6745)


def _coverage(tables: NDArray[np.int64], *, gain: float) -> float:
    low, high = newcombe_limits(tables, alpha=ALPHA)
    return float(np.mean((low <= gain) & (gain <= high)))


def _decisions_unlike_rule(seed: int) -> int:
    """Return the number of full decisions, from predictions to outcome, that differ from the rule on the same table."""
    different = 0
    for gain in (0.0, 0.03):
        tables = draw_tables(1000, scenario=Scenario(gain, 0.1, 0.7), num_draws=NUM_DECISIONS // 2, seed=seed)
        holds = rule_holds(tables, minimum_gain=MINIMUM_GAIN, alpha=ALPHA)
        different += sum(
            (_outcome(table) is Outcome.FINE_TUNE) != hold for table, hold in zip(tables, holds, strict=True)
        )
    return different


def _outcome(table: NDArray[np.int64]) -> Outcome:
    cell, n = np.repeat(np.arange(4), table), int(table.sum())

    def predictions(model: str, right: NDArray[np.bool_]) -> Predictions:
        return _answers(model, np.full(n, "yes"), outputs=np.where(right, "yes", "no"))

    inputs = VerdictInputs(
        ModelPredictions(predictions("incumbent", cell % 2 == 0)),
        ModelPredictions(predictions("candidate", cell < 2)),
        "simulated",
    )
    protocol = TestProtocol(
        metric="accuracy",
        minimum_gain=MINIMUM_GAIN,
        non_inferiority_margin=MINIMUM_GAIN,
        expected_gain=2 * MINIMUM_GAIN,
        alpha=ALPHA,
        test_sha256="simulated",
        num_test_rows=n,
    )
    return decide(inputs, protocol=protocol).outcome


def _answers(model: str, labels: NDArray[np.str_], *, outputs: NDArray[np.str_]) -> Predictions:
    ids, right = tuple(map(str, range(len(labels)))), (labels == outputs).astype(np.float64)
    unsure = np.full(len(labels), 0.5)
    return Predictions(model, ids, tuple(labels.tolist()), tuple(outputs.tolist()), right, unsure, unsure)


def _variants(rows: Sequence[dict[str, float]]) -> list[list[dict[str, float]]]:
    size = len(rows) // NUM_ROUNDS
    return [list(rows[start::size]) for start in range(size)]


def _medians(rows: Sequence[dict[str, float]], name: str) -> list[float]:
    return [median(row[name] for row in rounds) for rounds in _variants(rows)]


def _print_table(title: str, rows: Sequence[dict[str, float]], *, num_tests: int = NUM_DRAWS) -> None:
    table = Table(title=f"{title} (medians of {NUM_ROUNDS} rounds of {num_tests:,} tests)")
    for name in rows[0]:
        table.add_column(name, justify="right")
    for rounds in _variants(rows):
        values = [median(row[name] for row in rounds) for name in rows[0]]
        table.add_row(*(f"{value:,.4g}" if value < 1 else f"{value:,.0f}" for value in values))
    Console().print(table)


if __name__ == "__main__":
    main()
