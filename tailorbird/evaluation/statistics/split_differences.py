"""Differences between validation and test that are larger than chance: class shares, text lengths and scores."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.statistics.distributions import norm_sf
from tailorbird.evaluation.statistics.documents import documents_of
from tailorbird.evaluation.statistics.paired import holm

FloatArray = NDArray[np.float64]

ALPHA = 0.01  # over all comparisons of a run, because a difference is only reported
LEAST_ROWS = 5  # rows of a class that chance would give the smaller split
MAX_LISTED = 5


@dataclass(frozen=True)
class SplitSample:
    """The rows of a split."""

    labels: Sequence[str]  # classes; empty for chat tasks
    lengths: FloatArray  # [N] length of each text in characters
    scores: FloatArray  # [N] scores of the incumbent
    documents: Sequence[str] | None  # document of each row; None if rows are independent


def split_differences(validation: SplitSample, *, test: SplitSample) -> tuple[str, ...]:
    """Return a sentence for each difference between the splits that is significant by Holm, the largest first.

    The variance of each mean counts documents as units.
    """
    sentences, p_values = [], []
    for name in sorted(set(validation.labels) | set(test.labels)):
        pair = tuple(
            np.array([label == name for label in split.labels], dtype=np.float64) for split in (validation, test)
        )
        share = float(np.concatenate(pair).mean())
        if share * min(map(len, pair)) < LEAST_ROWS:
            continue
        first, second = (f"{100 * values.mean():.1f}%" for values in pair)
        sentences.append(f"the class {name!r} has {first} of the validation rows and {second} of the test rows")
        p_values.append(_p_value(pair, splits=(validation, test)))
    lengths = validation.lengths, test.lengths
    first, second = (f"{values.mean():.0f}" for values in lengths)
    sentences.append(f"texts have {first} characters on average in validation and {second} in test")
    p_values.append(_p_value(tuple(np.log1p(values) for values in lengths), splits=(validation, test)))
    scores = validation.scores, test.scores
    first, second = (f"{values.mean():.3f}" for values in scores)
    sentences.append(f"the incumbent's score is {first} on validation and {second} on test")
    p_values.append(_p_value(scores, splits=(validation, test)))
    by_p_value = sorted(zip(holm(p_values), sentences, strict=True))
    return tuple(sentence for p_value, sentence in by_p_value if p_value < ALPHA)[:MAX_LISTED]


def _p_value(values: tuple[FloatArray, ...], *, splits: tuple[SplitSample, SplitSample]) -> float:
    """Return the two-sided p value for equal means, by a normal approximation with the variance under equality."""
    pooled, variance = float(np.concatenate(values).mean()), 0.0
    for column, split in zip(values, splits, strict=True):
        documents = documents_of(split.documents, num_rows=len(column))
        variance += float(np.sum(documents.sums(column - pooled) ** 2)) / len(column) ** 2
    difference = float(values[0].mean() - values[1].mean())
    return 1.0 if variance == 0 else float(2 * norm_sf(abs(difference) / math.sqrt(variance)))
