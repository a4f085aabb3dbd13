"""Measure what near copies do to a test, with real questions and the functions that find copies.

    TAILORBIRD_DATA=folder python -m benchmarks.evaluation.near_copies

Equal models: each question is in the test once, or also in near copies, which both models answer as they answer the
question. How often is the interval of their difference above or below 0? How often, if rows counted as independent?

Memorised rows: train has near copies of 5% of the test rows. The candidate, otherwise as good as the incumbent, answers
these rows correctly. How often is it proven better by at least `MINIMUM_GAIN`, before and after they leave train?
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.rounds import Figures, finish, print_table, skip
from tailorbird.data.quality import clean
from tailorbird.data.rows import Rows, Splits
from tailorbird.evaluation.inference.row_predictions import label_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import compare

ALPHA, MINIMUM_GAIN, SEED = 0.05, 0.01, 37
NUM_ROWS, NUM_TESTS, COPIES = 1_000, 2_000, (1, 2, 4, 8)
LEAST_WORDS, MEMORISED = 10, 0.05
SHARED, THRESHOLD = 0.8, 0.84  # share of a question's difficulty that both models have; 80% are answered correctly
BOUNDS = {f"above_0_with_{copies}_copies": "<= 0.036" for copies in COPIES}  # 0.025 and three standard errors
BOUNDS |= {f"not_0_with_{copies}_copies": "<= 0.065" for copies in COPIES}
BOUNDS |= {"proven_better_after": "<= 0.036", "share_that_leaves_train": ">= 0.95"}
Mask = NDArray[np.bool_]


def main() -> None:
    """Print two tables, then one line of JSON."""
    if "TAILORBIRD_DATA" not in os.environ:
        skip("near_copies", "TAILORBIRD_DATA is not set to a folder with banking77")
        return
    splits = Splits(*(_read(name) for name in ("train", "validation", "test")))
    equal = {copies: _equal_models(splits.train, copies=copies) for copies in COPIES}
    print_table(f"Equal models, {NUM_TESTS:,} tests", {f"{copies} copies": rates for copies, rates in equal.items()})
    memorised = _memorised(splits)
    print_table(f"Near copies of {MEMORISED:.0%} of the test rows in train", {"": memorised})
    figures = {f"{name}_with_{copies}_copies": rate for copies, rates in equal.items() for name, rate in rates.items()}
    finish("near_copies", figures | memorised, bounds=BOUNDS)


def _read(split: str) -> Rows:
    """Return the questions of Banking77 with at least `LEAST_WORDS` words."""
    table = pq.read_table(Path(os.environ["TAILORBIRD_DATA"]) / "banking77" / f"{split}.parquet")
    rows = _rows(table["text"].to_pylist(), labels=table["label"].to_pylist())
    return rows.take([row for row, text in enumerate(rows.texts) if len(text.split()) >= LEAST_WORDS])


def _rows(texts: Sequence[str], *, labels: Sequence[str]) -> Rows:
    return Rows(tuple(map(str, range(len(texts)))), tuple(texts), tuple(labels))


def _near_copy(text: str, *, words: Sequence[str], generator: np.random.Generator) -> str:
    """Return a text with other case and punctuation, or with one word more, less, or replaced by one of `words`."""
    copy = text.split()
    position, word = int(generator.integers(len(copy))), str(generator.choice(words))
    copies = (
        [text.upper(), "..."],
        [*copy[:position], word, *copy[position:]],
        [*copy[:position], word, *copy[position + 1 :]],
        [*copy[:position], *copy[position + 1 :]],
    )
    return " ".join(copies[generator.integers(4)])


def _equal_models(questions: Rows, *, copies: int) -> Figures:
    """Return the number of documents that are found in the test, and the rates of intervals without 0."""
    generator, num = np.random.default_rng((SEED, copies)), NUM_ROWS // copies
    words = " ".join(questions.texts).split()
    drawn = questions.take(np.repeat(generator.choice(len(questions), num, replace=False), copies))
    texts = list(drawn.texts)
    for row in range(len(texts)):
        if row % copies:
            texts[row] = _near_copy(texts[row], words=words, generator=generator)
    table = _table(_rows(texts, labels=drawn.labels))
    rates = dict.fromkeys(("above_0", "not_0", "above_0_unaware", "not_0_unaware"), 0.0)
    for _ in range(NUM_TESTS):
        right = np.repeat(_right(num, generator=generator), copies, axis=1)
        for suffix, clusters in (("", table.clusters), ("_unaware", None)):
            low, high, _ = _compared(replace(table, clusters=clusters), right=right)
            rates[f"above_0{suffix}"] += (low > 0) / NUM_TESTS
            rates[f"not_0{suffix}"] += (low > 0 or high < 0) / NUM_TESTS
    return {"documents": len(set(table.clusters or table.row_ids)), **rates}


def _memorised(splits: Splits) -> Figures:
    generator = np.random.default_rng(SEED)
    words = " ".join(splits.train.texts).split()
    copied = generator.choice(len(splits.test), round(MEMORISED * len(splits.test)), replace=False)
    near = [_near_copy(splits.test.texts[row], words=words, generator=generator) for row in copied]
    labels = (*splits.train.labels, *splits.test.take(copied).labels)
    cleaned, _ = clean(replace(splits, train=_rows((*splits.train.texts, *near), labels=labels)))
    remaining = copied[np.isin(np.arange(len(near)) + len(splits.train), np.array(cleaned.train.row_ids, dtype=int))]
    rates = {"proven_better_before": 0.0, "proven_better_after": 0.0}
    table = _table(splits.test)
    for _ in range(NUM_TESTS):
        right = _right(len(table), generator=generator)
        for name, rows in zip(rates, (copied, remaining), strict=True):
            memorised = np.isin(np.arange(len(table)), rows)
            low, _, gain = _compared(table, right=np.stack([right[0] | memorised, right[1]]))
            rates[name] += (low > 0 and gain >= MINIMUM_GAIN) / NUM_TESTS
    return {"rows": len(table), **rates, "share_that_leaves_train": 1 - len(remaining) / len(copied)}


def _right(num: int, *, generator: np.random.Generator) -> Mask:
    """Return the questions [2, num] that each of two equally good models answers correctly."""
    shared, *own = generator.standard_normal((3, num))
    return np.asarray(np.sqrt(SHARED) * shared + np.sqrt(1 - SHARED) * np.array(own) < THRESHOLD)


def _table(rows: Rows) -> Predictions:
    sure = np.ones(len(rows))
    return label_predictions("full", rows=rows, outputs=rows.labels, confidences=sure, calibrated=sure)


def _compared(table: Predictions, *, right: Mask) -> tuple[float, float, float]:
    """Return the interval and the value of the difference of two models that answer these rows correctly."""
    candidate, other = (replace(table, scores=scores.astype(np.float64)) for scores in right)
    comparison = compare(candidate, other=other, metric="accuracy", alpha=ALPHA)
    return (*comparison.interval, comparison.gain)


if __name__ == "__main__":
    main()
