"""Differences between two splits that are larger than chance: class shares, text lengths and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.statistics.distributions import norm_sf
from tailorbird.evaluation.statistics.documents import documents_of

FloatArray = NDArray[np.float64]

ALPHA = 0.01  # over all comparisons of two splits, because a difference is only reported
LEAST_ROWS = 5  # rows of a class that chance would give the smaller split
MAX_LISTED = 5


@dataclass(frozen=True)
class SplitSample:
    """The rows of a split."""

    labels: Sequence[str]  # classes; empty for chat tasks
    lengths: FloatArray  # [N] length of each text in characters
    documents: Sequence[str] | None  # document of each row; None if rows are independent
    scores: FloatArray | None = None  # [N] scores of the incumbent, if it has predicted the rows


def split_differences(
    validation: SplitSample, *, test: SplitSample, names: tuple[str, str] = ("validation", "test"), least: float = 1.0
) -> tuple[str, ...]:
    """Return a sentence for each significant difference between the splits, the largest first.

    A difference is significant at `ALPHA` divided by the number of compared differences.
    The variance of each mean counts documents as units. `names` are those of the splits in the sentences. Differences
    by a factor of less than `least` are omitted.
    """
    sentences, p_values, factors, splits = [], [], [], (validation, test)
    for name in sorted(set(validation.labels) | set(test.labels)):
        pair = tuple(np.array([label == name for label in split.labels], dtype=np.float64) for split in splits)
        share = float(np.concatenate(pair).mean())
        if share * min(map(len, pair)) < LEAST_ROWS:
            continue
        first, second = (f"{100 * values.mean():.1f}%" for values in pair)
        sentences.append(f"the class {name!r} has {first} of the {names[0]} rows and {second} of the {names[1]} rows")
        p_values.append(_p_value(pair, splits=splits))
        factors.append(_factor(pair))
    lengths = validation.lengths, test.lengths
    first, second = (f"{values.mean():.0f}" for values in lengths)
    sentences.append(f"texts have {first} characters on average in {names[0]} and {second} in {names[1]}")
    p_values.append(_p_value(tuple(np.log1p(values) for values in lengths), splits=splits))
    factors.append(_factor(lengths))
    if validation.scores is not None and test.scores is not None:
        scores = validation.scores, test.scores
        first, second = (f"{values.mean():.3f}" for values in scores)
        sentences.append(f"the incumbent's score is {first} on {names[0]} and {second} on {names[1]}")
        p_values.append(_p_value(scores, splits=splits))
        factors.append(_factor(scores))
    level = ALPHA / len(p_values)
    by_p_value = sorted(zip(p_values, sentences, factors, strict=True))
    listed = [sentence for p_value, sentence, factor in by_p_value if p_value < level and factor >= least]
    return tuple(listed[:MAX_LISTED])


def _factor(values: tuple[FloatArray, ...]) -> float:
    """Return the larger mean divided by the smaller one; infinity if only the smaller one is 0."""
    low, high = sorted(float(column.mean()) for column in values)
    return high / low if low else math.inf if high else 1.0


def _p_value(values: tuple[FloatArray, ...], *, splits: tuple[SplitSample, SplitSample]) -> float:
    """Return the two-sided p value for equal means, by a normal approximation with the variance under equality."""
    pooled, variance = float(np.concatenate(values).mean()), 0.0
    for column, split in zip(values, splits, strict=True):
        documents = documents_of(split.documents, num_rows=len(column))
        variance += float(np.sum(documents.sums(column - pooled) ** 2)) / len(column) ** 2
    difference = float(values[0].mean() - values[1].mean())
    return 1.0 if variance == 0 else float(2 * norm_sf(abs(difference) / math.sqrt(variance)))
