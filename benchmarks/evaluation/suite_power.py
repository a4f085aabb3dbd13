"""Measure the power of the suites gate on `refusals` and `over-refusals`: losses that fail, and what passes.

    python -m benchmarks.evaluation.suite_power

Each suite has as many rows as the built-in ones, scores of 0 and 1, and the default margin. The incumbent scores 20% or
95%. The candidate loses a share of all rows on one suite, alone or with four other suites on which it answers as the
incumbent does. With random changes, a further 2% of the rows get worse, and 2% better.
"""

from itertools import product

import numpy as np

from benchmarks.rounds import Figures, finish, print_table
from tailorbird.config.suites import SuiteConfig
from tailorbird.data.suites.read import read_suite
from tailorbird.evaluation.gates.base import State
from tailorbird.evaluation.gates.suites import AnsweredSuite, suites_gate
from tailorbird.evaluation.predictions import Predictions

ALPHA, SEED, NUM_GATES = 0.05, 2026, 2_000
CONFIG = SuiteConfig(uri="builtin://refusals")
INCUMBENTS, CHANGES, NUM_OTHERS = (0.2, 0.95), (0.0, 0.02), (0, 4)
DETECTED = {(0, 0.0): 0.13, (4, 0.0): 0.15, (0, 0.02): 0.15, (4, 0.02): 0.18}
"""Loss that is detected in 80% of cases, by number of other suites and share of random changes."""
BOUNDS = {"detected": ">= 0.8", "unchanged_that_pass": ">= 1", "losses_of_the_margin_that_pass": "<= 0.05"}


def main() -> None:
    """Prints a table, then one line of JSON."""
    num_rows = {len(read_suite(f"builtin://{name}")) for name in ("refusals", "over-refusals")}
    (n,) = num_rows  # both suites have the same number
    rows: dict[str, Figures] = {}
    rates: dict[str, list[float]] = {name: [] for name in BOUNDS}
    for others, changed, score in product(NUM_OTHERS, CHANGES, INCUMBENTS):
        for loss in (0.0, CONFIG.max_loss, DETECTED[others, changed]):
            fails, passes = _rates(score, loss=loss, changed=changed, num_rows=n, num_others=others)
            name = f"{others} other suites, incumbent {score:.0%}, changes {changed:.0%}, loss {loss:.0%}"
            rows[name] = {"fails": fails, "passes": passes}
            if loss > CONFIG.max_loss:
                rates["detected"].append(fails)
            elif loss:
                rates["losses_of_the_margin_that_pass"].append(passes)
            elif not changed:
                rates["unchanged_that_pass"].append(passes)
    print_table(f"Suites of {n} rows with a margin of {CONFIG.max_loss:.0%}", rows)
    worst = {name: (min if BOUNDS[name].startswith(">") else max)(values) for name, values in rates.items()}
    finish("suite_power", worst, bounds=BOUNDS)


def _rates(score: float, *, loss: float, changed: float, num_rows: int, num_others: int) -> tuple[float, float]:
    """Return how often the gate fails and passes. The incumbent is right on `score` of the rows."""
    generator, states = np.random.default_rng(SEED), []
    shares = (score - loss - changed, loss + changed, changed, 1 - score - changed)
    same = _answers(np.arange(num_rows) < round(score * num_rows))
    equal = {str(number): AnsweredSuite(CONFIG, same, same) for number in range(num_others)}
    for cells in generator.multinomial(num_rows, np.clip(shares, 0, 1), size=NUM_GATES):
        row = np.repeat(np.arange(4), cells)  # both right, only the incumbent, only the candidate, neither
        suite = AnsweredSuite(CONFIG, _answers((row == 0) | (row == 2)), _answers(row <= 1))
        states.append(suites_gate({"suite": suite} | equal, alpha=ALPHA).state)
    return states.count(State.FAILS) / NUM_GATES, states.count(State.PASSES) / NUM_GATES


def _answers(right: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> Predictions:
    n, scores = len(right), right.astype(np.float64)
    return Predictions("simulated", ("r",) * n, ("a",) * n, ("a",) * n, scores, scores, scores)


if __name__ == "__main__":
    main()
