"""Measure the coverage of 95% intervals of a gain over rows that share documents, with the Monte
Carlo error.

python -m benchmarks.evaluation.document_intervals
"""

from itertools import product

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from benchmarks.rounds import Figures, finish, print_table
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.class_metrics import class_metric_effect
from tailorbird.evaluation.statistics.documents import Documents

ALPHA = 0.05
SEED = 2026
SIZES = ("even", "lognormal", "pareto")
NUM_DOCUMENTS = (10, 30, 100, 1000)
CORRELATIONS = (0.03, 0.3, 0.6)
NUM_EFFECTS = 4_000
NUM_MACRO_F1 = 1_500
GAIN = 0.02
DISCORDANCE = 0.2
BOUNDS = {
    "lowest_coverage_of_documents": ">= 0.92",
    "mean_coverage_of_documents": ">= 0.93",
    "lowest_coverage_of_macro_f1_by_documents": ">= 0.92",
}


def main() -> None:
    """Prints a table for means and one for macro-F1, then one line of JSON."""
    rows: dict[str, Figures] = {}
    for sizes, num, correlation in product(SIZES, NUM_DOCUMENTS, CORRELATIONS):
        rows[f"{sizes}, {num}, icc {correlation}"] = {
            "continuous": _coverage(sizes, num=num, correlation=correlation, is_accuracy=False),
            "accuracy": _coverage(sizes, num=num, correlation=correlation, is_accuracy=True),
            "+-": _error(0.95, NUM_EFFECTS),
        }
    print_table("Coverage of the 95% interval over documents", rows)
    macro = {
        f"{sizes}, {num}": _macro_f1_coverage(sizes, num=num)
        for sizes, num in product(SIZES, (10, 50))
    }
    error = _error(0.95, NUM_MACRO_F1)
    title = "Coverage of the 95% interval of macro-F1 over documents, equal models"
    print_table(title, {name: {"macro-F1": rate, "+-": error} for name, rate in macro.items()})
    coverage = [row[name] for row in rows.values() for name in ("continuous", "accuracy")]
    figures = {
        "lowest_coverage_of_documents": min(coverage),
        "mean_coverage_of_documents": float(np.mean(coverage)),
        "lowest_coverage_of_macro_f1_by_documents": min(macro.values()),
    }
    finish("document_intervals", figures, bounds=BOUNDS)


def _error(rate: float, num: int) -> float:
    """Return the Monte Carlo standard error of a rate."""
    return float(np.sqrt(rate * (1 - rate) / num))


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
    generator = np.random.default_rng((SEED, num, SIZES.index(sizes)))
    rows = np.stack([_document_sizes(generator, sizes, num=num) for _ in range(NUM_EFFECTS)])
    shared = np.sqrt(correlation) * generator.standard_normal(rows.shape)
    own = np.sqrt(1 - correlation)
    if is_accuracy:
        share_won = norm.cdf((norm.ppf((DISCORDANCE + GAIN) / 2) - shared) / own)
        share_lost = norm.sf((norm.isf((DISCORDANCE - GAIN) / 2) - shared) / own)
        wins = generator.binomial(rows, share_won)
        losses = generator.binomial(rows - wins, np.clip(share_lost / (1 - share_won), 0, 1))
        sums = (wins - losses).astype(np.float64)
    else:
        sums = GAIN * rows + 0.3 * (
            shared * rows + own * np.sqrt(rows) * generator.standard_normal(rows.shape)
        )
    num_covered = 0
    for of_test, of_documents in zip(sums, rows, strict=True):
        documents = Documents(np.arange(num), of_documents.astype(np.float64))
        error = np.sqrt(documents.mean_covariance(of_test[:, None])[0, 0])
        half = t.ppf(1 - ALPHA / 2, documents.degrees_of_freedom) * error
        num_covered += abs(of_test.sum() / of_documents.sum() - GAIN) <= half
    return num_covered / len(rows)


def _macro_f1_coverage(sizes: str, *, num: int) -> float:
    generator = np.random.default_rng((SEED, num))
    covered = 0
    for _ in range(NUM_MACRO_F1):
        codes = np.repeat(np.arange(num), _document_sizes(generator, sizes, num=num))
        labels = generator.choice(4, len(codes), p=(0.45, 0.3, 0.15, 0.1))
        tables = []
        for _ in range(2):
            shared = generator.standard_normal(num)[codes]
            latent = np.sqrt(0.3) * shared + np.sqrt(0.7) * generator.standard_normal(len(codes))
            right = latent < norm.ppf(0.75)
            outputs = np.where(right, labels, (labels + 1) % 4)
            tables.append(_table(labels, outputs=outputs, documents=codes))
        low, high = class_metric_effect(
            tables[0], other=tables[1], metric="macro_f1", alpha=ALPHA
        ).interval
        covered += low <= 0 <= high
    return covered / NUM_MACRO_F1


def _table(
    labels: NDArray[np.int64], *, outputs: NDArray[np.int64], documents: NDArray[np.int64]
) -> Predictions:
    names = [
        tuple(values.astype(str).tolist())
        for values in (np.arange(len(labels)), labels, outputs, documents)
    ]
    scores = (labels == outputs).astype(np.float64)
    return Predictions(
        "simulated", names[0], names[1], names[2], scores, scores, scores, clusters=names[3]
    )


if __name__ == "__main__":
    main()
