"""Differences between two splits that are larger than chance: class shares, text lengths and
scores."""

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
    texts: Sequence[str]
    documents: Sequence[str] | None  # document of each row; None if rows are independent
    scores: FloatArray | None = None  # [N] scores of the incumbent, if it has predicted the rows


def split_differences(
    validation: SplitSample,
    *,
    test: SplitSample,
    names: tuple[str, str] = ("validation", "test"),
    least: float = 1.0,
) -> tuple[str, ...]:
    """Return a sentence for each significant difference between the splits, the most significant
    first.

    A difference is significant at `ALPHA` divided by the number of compared differences. The
    variance of each mean counts documents as units. `names` are those of the splits in the
    sentences. Differences by a factor of less than `least` are omitted.
    """
    splits = (validation, test)
    differences: list[tuple[float, str, float]] = []  # p value, sentence, factor

    def compare(
        what: str, *, form: str, values: Sequence[FloatArray], tested: Sequence[FloatArray]
    ) -> None:
        means = [float(column.mean()) for column in values]
        sentence = f"{what} is {means[0]:{form}} in {names[0]} and {means[1]:{form}} in {names[1]}"
        differences.append((_p_value(tested, splits=splits), sentence, _factor(means)))

    for name in sorted({*validation.labels, *test.labels}):
        shares = [(np.array(split.labels, object) == name).astype(np.float64) for split in splits]
        if np.concatenate(shares).mean() * min(map(len, shares)) >= LEAST_ROWS:
            compare(f"the share of the class {name!r}", form=".1%", values=shares, tested=shares)
    lengths = [np.array([*map(len, split.texts)], dtype=np.float64) for split in splits]
    logs = [np.log1p(values) for values in lengths]
    compare("the mean number of characters of a text", form=".0f", values=lengths, tested=logs)
    scores = [split.scores for split in splits if split.scores is not None]
    if len(scores) == len(splits):
        compare("the incumbent's score", form=".3f", values=scores, tested=scores)
    level = ALPHA / len(differences)
    listed = [
        sentence
        for p_value, sentence, factor in sorted(differences)
        if p_value < level and factor >= least
    ]
    return tuple(listed[:MAX_LISTED])


def _factor(means: Sequence[float]) -> float:
    """Return the larger mean divided by the smaller one; infinity if only the smaller one is 0."""
    low, high = sorted(means)
    if low:
        return high / low
    if high:
        return math.inf
    return 1.0


def _p_value(values: Sequence[FloatArray], *, splits: tuple[SplitSample, SplitSample]) -> float:
    """Return the two-sided p value for equal means, by a normal approximation with the variance
    under equality."""
    pooled = float(np.concatenate(values).mean())
    variance = 0.0
    for column, split in zip(values, splits, strict=True):
        documents = documents_of(split.documents, num_rows=len(column))
        variance += float(np.sum(documents.sums(column - pooled) ** 2)) / len(column) ** 2
    difference = float(values[0].mean() - values[1].mean())
    if variance == 0:
        return 1.0
    return float(2 * norm_sf(abs(difference) / math.sqrt(variance)))
