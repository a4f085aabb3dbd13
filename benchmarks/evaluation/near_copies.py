"""Measure what near copies do to a test, with real questions and the functions that find copies.

    TAILORBIRD_DATA=folder python -m benchmarks.evaluation.near_copies

How often is the interval of equal models above 0 if the test has near copies of each question,
which a model answers alike? How often is a candidate proven better that is better only on the 5% of
the test rows of which it has memorised near copies, before and after these leave train?
"""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.rounds import Figures, finish, print_table, skip
from tailorbird.data.quality import clean
from tailorbird.data.rows import Rows, Splits, concat_rows
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import Comparison, compare

ALPHA, MINIMUM_GAIN, SEED = 0.05, 0.01, 37
NUM_ROWS, NUM_TESTS, COPIES = 1_000, 2_000, (1, 2, 4, 8)
TEST_ROWS, MEMORISED, LEAST_WORDS = 3_000, 0.05, 10
SHARED, THRESHOLD = (
    0.8,
    0.84,
)  # share of a question's difficulty that both models have; 80% are answered correctly
BOUNDS = {
    f"above_0_with_{copies}_copies": "<= 0.036" for copies in COPIES
}  # 0.025 and three standard errors
BOUNDS |= {f"not_0_with_{copies}_copies": "<= 0.065" for copies in COPIES}
BOUNDS |= {"proven_better_after": "<= 0.036", "share_that_leaves_train": ">= 0.95"}


def main() -> None:
    """Print a table, then one line of JSON."""
    if "TAILORBIRD_DATA" not in os.environ:
        skip("near_copies", "TAILORBIRD_DATA is not set to a folder with banking77")
        return
    questions, validation, others = (_read(name) for name in ("train", "validation", "test"))
    equal = {f"{copies}_copies": _equal_models(questions, copies=copies) for copies in COPIES}
    memorised = _memorised(Splits(others, validation, test=questions.take(range(TEST_ROWS))))
    print_table(f"Near copies in {NUM_TESTS:,} tests", {**equal, "memorised": memorised})
    figures = {
        f"{name}_with_{copies}": rate
        for copies, rates in equal.items()
        for name, rate in rates.items()
    }
    finish("near_copies", {**figures, **memorised}, bounds=BOUNDS)


def _read(split: str) -> Rows:
    """Return the questions of Banking77 with at least `LEAST_WORDS` words."""
    table = pq.read_table(Path(os.environ["TAILORBIRD_DATA"]) / "banking77" / f"{split}.parquet")
    texts, labels = (tuple(table[name].to_pylist()) for name in ("text", "label"))
    rows = Rows(tuple(map(str, range(len(texts)))), texts, labels)
    return rows.take([row for row, text in enumerate(texts) if len(text.split()) >= LEAST_WORDS])


def _near_copies(rows: Rows, *, number: int, generator: np.random.Generator) -> Rows:
    """Return the rows with other case and punctuation, or with one word more, less or replaced."""
    words, texts = np.array(" ".join(rows.texts).split()), []
    for text in rows.texts:
        copy, word = text.split(), [str(generator.choice(words))]
        position = int(generator.integers(len(copy)))
        before, after = copy[:position], copy[position + 1 :]
        changed = (
            [text.upper(), "..."],
            before + word + copy[position:],
            before + word + after,
            before + after,
        )
        texts.append(" ".join(changed[generator.integers(4)]))
    return replace(
        rows,
        texts=tuple(texts),
        row_ids=tuple(f"copy {number} of {row_id}" for row_id in rows.row_ids),
    )


def _equal_models(questions: Rows, *, copies: int) -> Figures:
    """Return the number of documents that are found in the test, and the rates of intervals without
    0."""
    generator, num = np.random.default_rng((SEED, copies)), NUM_ROWS // copies
    drawn = questions.take(generator.choice(len(questions), num, replace=False))
    parts = [_near_copies(drawn, number=number, generator=generator) for number in range(1, copies)]
    table = _table(concat_rows([drawn, *parts]))
    rates = {"above_0": 0.0, "not_0": 0.0, "above_0_unaware": 0.0}
    for _ in range(NUM_TESTS):
        right = np.tile(_right(num, generator=generator), copies)
        low, high = _compared(table, right=right).interval
        rates["above_0"] += (low > 0) / NUM_TESTS
        rates["not_0"] += (low > 0 or high < 0) / NUM_TESTS
        unaware = _compared(replace(table, clusters=None), right=right)
        rates["above_0_unaware"] += (unaware.interval[0] > 0) / NUM_TESTS
    return {"documents": len(set(table.clusters or table.row_ids)), **rates}


def _memorised(splits: Splits) -> Figures:
    """Return how often the candidate is proven better, and the share of the near copies that leave
    train."""
    generator, table = np.random.default_rng(SEED), _table(splits.test)
    copied = np.sort(generator.choice(TEST_ROWS, round(MEMORISED * TEST_ROWS), replace=False))
    copies = _near_copies(splits.test.take(copied), number=1, generator=generator)
    cleaned, _ = clean(replace(splits, train=concat_rows([splits.train, copies])))
    remaining = copied[np.isin(copies.row_ids, cleaned.train.row_ids)]
    rates = {"proven_better_before": 0.0, "proven_better_after": 0.0}
    for _ in range(NUM_TESTS):
        right = _right(TEST_ROWS, generator=generator)
        for name, memorised in zip(rates, (copied, remaining), strict=True):
            known = right.copy()
            known[0, memorised] = True
            result = _compared(table, right=known)
            rates[name] += (result.interval[0] > 0 and result.gain >= MINIMUM_GAIN) / NUM_TESTS
    return {**rates, "share_that_leaves_train": 1 - len(remaining) / len(copied)}


def _right(num: int, *, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Return the questions [2, num] that each of two equally good models answers correctly."""
    shared, *own = generator.standard_normal((3, num))
    return np.asarray(np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * np.array(own) < THRESHOLD)


def _table(rows: Rows) -> Predictions:
    sure = np.ones(len(rows))
    return label_predictions(
        "full", rows=rows, outputs=rows.labels, confidences=sure, calibrated=sure
    )


def _compared(table: Predictions, *, right: NDArray[np.bool_]) -> Comparison:
    candidate, other = (replace(table, scores=scores.astype(np.float64)) for scores in right)
    return compare(candidate, other=other, metric="accuracy", alpha=ALPHA)


if __name__ == "__main__":
    main()
