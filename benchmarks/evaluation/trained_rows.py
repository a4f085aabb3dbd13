"""Measure how often a better candidate wins if the champion was trained on some of the test rows,
by simulation.

    python -m benchmarks.evaluation.trained_rows

The champion answers the test rows that it was trained on correctly with a probability of 0.99. On
other rows, a row has a difficulty that both models share. Each simulated test is decided twice: on
all rows, and without the known rows.
"""

from dataclasses import replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from benchmarks.rounds import Figures, finish, print_table
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.verdict.inputs import TrainedRows, VerdictInputs
from tailorbird.evaluation.verdict.protocol import NO_GATES, TestProtocol
from tailorbird.evaluation.verdict.reach import reach_verdict

NUM_ROWS, NUM_RUNS = 3_000, 200
ACCURACY, KNOWN, MINIMUM_GAIN = 0.75, 0.99, 0.01
SHARES, GAINS = (0.3, 0.1), (0.03, 0.0)
ROW_IDS = tuple(map(str, range(NUM_ROWS)))
BOUNDS = {
    "30% known, +3 points": ">= 0.85",
    "10% known, +3 points": ">= 0.9",
    "30% known, +0 points": "<= 0.05",
    "10% known, +0 points": "<= 0.05",
}
PROTOCOL = TestProtocol(
    metric="accuracy",
    minimum_gain=MINIMUM_GAIN,
    non_inferiority_margin=MINIMUM_GAIN,
    expected_gain=0.03,
    alpha=0.05,
    test_sha256="simulated",
    num_test_rows=NUM_ROWS,
    gates=NO_GATES,
)


def main() -> None:
    """Print a table, then one line of JSON."""
    rows: dict[str, Figures] = {}
    for gain, share in product(GAINS, SHARES):
        rows[f"{share:.0%} known, {100 * gain:+g} points"] = _rates(share, gain=gain)
    print_table(f"FINE_TUNE, {NUM_ROWS:,} test rows, {NUM_RUNS} tests", rows)
    figures = {name: row["unknown rows"] for name, row in rows.items()}
    figures |= {f"{name}, on all rows": row["all rows"] for name, row in rows.items()}
    finish("trained_rows", figures, bounds=BOUNDS)


def _rates(share: float, *, gain: float) -> Figures:
    """Return how often the outcome is FINE_TUNE on all rows, and without the rows that the champion
    was trained on."""
    generator = np.random.default_rng((int(100 * share), int(100 * gain)))
    on_all = without = 0
    for _ in range(NUM_RUNS):
        known = generator.permutation(NUM_ROWS) < share * NUM_ROWS
        inputs = _inputs(generator, known, gain=gain)
        trained = TrainedRows({"incumbent": tuple(np.array(ROW_IDS)[known].tolist())})
        on_all += reach_verdict(inputs, protocol=PROTOCOL).outcome == "FINE_TUNE"
        without += (
            reach_verdict(replace(inputs, trained_rows=trained), protocol=PROTOCOL).outcome
            == "FINE_TUNE"
        )
    rates = {"all rows": on_all / NUM_RUNS, "unknown rows": without / NUM_RUNS}
    errors = {
        f"+- {name}": float(np.sqrt(rate * (1 - rate) / NUM_RUNS)) for name, rate in rates.items()
    }
    return rates | errors


def _inputs(
    generator: np.random.Generator, known: NDArray[np.bool_], *, gain: float
) -> VerdictInputs:
    """Return the predictions of the champion, which was trained on the known rows, and of the
    candidate."""
    shared = np.sqrt(0.8) * generator.standard_normal((NUM_ROWS, 1))
    skill = shared + np.sqrt(0.2) * generator.standard_normal((NUM_ROWS, 2))
    right = skill > norm.isf([ACCURACY, ACCURACY + gain])
    right[:, 0] = np.where(known, generator.random(NUM_ROWS) < KNOWN, right[:, 0])
    champion, candidate = (ModelPredictions(_predictions(right[:, model])) for model in range(2))
    return VerdictInputs({"incumbent": champion, "candidate": candidate}, "simulated")


def _predictions(right: NDArray[np.bool_]) -> Predictions:
    outputs, unsure = tuple(np.where(right, "yes", "no").tolist()), np.full(NUM_ROWS, 0.5)
    return Predictions(
        "simulated", ROW_IDS, ("yes",) * NUM_ROWS, outputs, right.astype(np.float64), unsure, unsure
    )


if __name__ == "__main__":
    main()
