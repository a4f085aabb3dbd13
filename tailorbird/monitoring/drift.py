"""Statistics of drift between traffic and the reference rows of the champion, each with a computed threshold.

Windows without drift exceed a threshold at a given rate if their rows are independent. Dependent rows (of a document,
of a patient) are known in the reference but not in traffic, so a window of few documents looks like drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Embeddings = NDArray[np.float32]

FAR_SHARE = 0.01  # share of the reference rows that count as far from their nearest neighbour
NUM_BINS = 10
NUM_DRAWS = 20_000
PSEUDO_COUNT = 0.5  # rows added to each bin (Jeffreys), so that no bin has probability 0
RIDGE = 1.0
BLOCK_ROWS = 1024
SEED = 1979
MIN_ROWS = 50  # minimum rows of a window or a reference
MIN_KEYS = 20
"""Minimum number of keys of a reference: the smallest of 2, 3, 5, 10, 20 and 50 with which windows without drift did
not exceed the given rate. A few documents do not show how much documents differ."""
DRAWS_AT_ONCE = 200


class DriftError(ValueError):
    """Raised if a window or a reference is too small for any statistic."""


@dataclass(frozen=True, eq=False)
class TrafficSample:
    """Answers in a window of time, or to the reference rows, without texts."""

    confidences: FloatArray  # [N] calibrated confidences of the champion
    outputs: Sequence[str]  # [N] answers of the champion
    embeddings: Embeddings | None = None  # [M, D] of the rows with texts, by the pretrained encoder
    keys: IntArray | None = None
    """[N] (reference only) integers that are equal for dependent rows, such as those of a document or a patient. A
    reference with embeddings has one embedding per row, so M is N."""

    def __len__(self) -> int:
        return len(self.confidences)


@dataclass(frozen=True)
class DriftStatistic:
    """A drift statistic of a window, with its threshold."""

    name: str  # `unfamiliar`, `confidence`, `classes` or `two-sample`
    description: str
    value: float
    threshold: float  # exceeded at `rate` by windows of this size without drift
    rate: float
    n: int  # number of rows in the window

    @property
    def alarm(self) -> bool:
        return self.value > self.threshold


def drift_statistics(window: TrafficSample, *, reference: TrafficSample, rate: float) -> tuple[DriftStatistic, ...]:
    """Return all statistics that can be computed, the most powerful first; their joint false-alarm rate is `rate`.

    Without embeddings of both samples, the first and the last statistic are omitted. If few keys have nearly all rows,
    the last one is omitted. Raises DriftError for fewer than 50 rows, and for a reference with fewer than 20 keys.
    """
    for name, sample in (("the window", window), ("the reference", reference)):
        if len(sample) < MIN_ROWS:
            raise DriftError(f"{name} has {len(sample)} rows; drift statistics need at least {MIN_ROWS}")
    keys = np.arange(len(reference)) if reference.keys is None else reference.keys
    num_keys = len(np.unique(keys))
    if num_keys < MIN_KEYS:
        raise DriftError(
            f"the {len(reference)} rows of the reference have only {num_keys} values of data.split_by; give validation "
            f"rows with at least {MIN_KEYS}"
        )
    embeddings = [sample.embeddings for sample in (window, reference)]
    can_embed = all(rows is not None and len(rows) >= MIN_ROWS for rows in embeddings)
    each = rate / (4 if can_embed else 2)
    statistics = [test(window, reference=reference, rate=each) for test in (confidence_statistic, classes_statistic)]
    if window.embeddings is None or reference.embeddings is None or not can_embed:
        return tuple(statistics)
    ours, theirs = (_normalised(rows) for rows in (window.embeddings, reference.embeddings))
    unfamiliar = unfamiliar_statistic(ours, reference=theirs, keys=keys, rate=each)
    two_sample = classifier_two_sample_test(ours, reference=theirs, keys=keys, rate=each)
    return (unfamiliar, *statistics, *([] if two_sample is None else [two_sample]))


def unfamiliar_statistic(window: Embeddings, *, reference: Embeddings, keys: IntArray, rate: float) -> DriftStatistic:
    """Return the share of texts that are farther from their nearest reference row than 99 % of the reference rows.

    For a reference row, only neighbours with another key count, because traffic comes from other documents. If all rows
    come from one distribution, the probability that a new row is farther than the j-th farthest of n has a
    Beta(j, n + 1 - j) distribution, and the number of such rows in a window of m is binomial. n is the effective number
    of rows, because rows of one key are dependent. Both embeddings [N, D] have length 1.
    """
    distances = np.sort(nearest_distances(reference, reference, keys=keys))
    far = max(1, int(FAR_SHARE * len(distances)))
    share = float((nearest_distances(window, reference) > distances[-far]).mean())
    generator = np.random.default_rng(SEED)
    num = _effective(keys)
    farthest = max(1.0, far * num / len(distances))  # at least one row, for references with few keys
    chances = generator.beta(farthest, num + 1 - farthest, NUM_DRAWS)
    clean = generator.binomial(len(window), chances) / len(window)
    description = "share of texts farther from the reference than 99 % of the reference texts"
    return DriftStatistic("unfamiliar", description, share, threshold_at(clean, rate), rate, len(window))


def confidence_statistic(window: TrafficSample, *, reference: TrafficSample, rate: float) -> DriftStatistic:
    """Return the population stability index of the confidence, in ten bins with equal numbers of reference rows."""
    edges = np.unique(np.quantile(reference.confidences, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    theirs, ours = (np.searchsorted(edges, sample.confidences, side="right") for sample in (reference, window))
    description = "population stability index of the confidence"
    value, threshold = _stability(theirs, window=ours, num_bins=len(edges) + 1, keys=reference.keys, rate=rate)
    return DriftStatistic("confidence", description, value, threshold, rate, len(window))


def classes_statistic(window: TrafficSample, *, reference: TrafficSample, rate: float) -> DriftStatistic:
    """Return the population stability index of the predicted classes."""
    names = sorted({*reference.outputs, *window.outputs})
    codes = {name: code for code, name in enumerate(names)}
    theirs, ours = (np.array([codes[name] for name in sample.outputs]) for sample in (reference, window))
    value, threshold = _stability(theirs, window=ours, num_bins=len(names), keys=reference.keys, rate=rate)
    description = "population stability index of the predicted classes"
    return DriftStatistic("classes", description, value, threshold, rate, len(window))


def classifier_two_sample_test(
    window: Embeddings, *, reference: Embeddings, keys: IntArray, rate: float
) -> DriftStatistic | None:
    """Return the area under the ROC curve of a linear classifier of window texts against reference texts.

    The classifier is fitted on one half of both and evaluated on the other. If both come from one distribution, the
    scores of the second half are exchangeable, so the threshold is that of the Mann-Whitney statistic, with the
    effective number of reference rows. All rows of a key are in one half. Returns None if a half is empty.
    Source: Lopez-Paz and Oquab, ICLR 2017.
    """
    generator = np.random.default_rng(SEED)
    size = min(len(window), len(reference)) // 2
    first = np.isin(keys, generator.permutation(np.unique(keys))[::2])
    ours, theirs = (
        generator.permutation(len(window)),
        generator.permutation(len(reference)),
    )  # the rows of files may be sorted
    is_first = first[theirs]
    window_halves = ours[::2][:size], ours[1::2][:size]
    reference_halves = theirs[is_first][:size], theirs[~is_first][:size]
    fitted = np.concatenate([window[window_halves[0]], reference[reference_halves[0]]]).astype(np.float64)
    targets = np.concatenate([np.full(len(window_halves[0]), 1.0), np.full(len(reference_halves[0]), -1.0)])
    centred = fitted - fitted.mean(0)
    gram = centred.T @ centred + RIDGE * np.eye(fitted.shape[1])
    direction = np.linalg.solve(gram, centred.T @ targets)
    ranks = rankdata(np.concatenate([window[window_halves[1]], reference[reference_halves[1]]]) @ direction)
    num, other = len(window_halves[1]), len(reference_halves[1])
    area = float((ranks[:num].sum() - num * (num + 1) / 2) / (num * other))
    other_effective = _effective(keys[reference_halves[1]])
    variance = (num + other_effective + 1) / (12 * num * other_effective)
    threshold = 0.5 + norm.isf(rate) * np.sqrt(variance)
    description = "area under the ROC curve of a classifier of window texts against reference texts"
    return DriftStatistic("two-sample", description, area, float(threshold), rate, len(window))


def _stability(
    reference: IntArray, *, window: IntArray, num_bins: int, keys: IntArray | None, rate: float
) -> tuple[float, float]:
    """Return the stability index of binned rows [N], and its threshold at `rate` without drift.

    The reference is resampled by whole keys, one fewer than it has: K - 1 draws with replacement have the variance of
    K independent keys (Rao and Wu, JASA 83, 1988). The rows of the window are resampled individually.
    """
    generator = np.random.default_rng(SEED)
    theirs, ours = (np.bincount(rows, minlength=num_bins) for rows in (reference, window))
    chances = (theirs + PSEUDO_COUNT) / (theirs + PSEUDO_COUNT).sum()
    num_draws = NUM_DRAWS // 10
    if keys is None:
        references = generator.multinomial(len(reference), chances, num_draws)
    else:
        references = _resampled_by_key(generator, reference, keys=keys, num_bins=num_bins, num_draws=num_draws)
    thresholds = stability_index(references, generator.multinomial(len(window), chances, num_draws))
    return float(stability_index(theirs[None], ours[None])[0]), threshold_at(thresholds, rate)


def _resampled_by_key(
    generator: np.random.Generator, rows: IntArray, *, keys: IntArray, num_bins: int, num_draws: int
) -> IntArray:
    """Return the counts [K, B] of K resamples of whole keys with replacement."""
    codes = np.unique(keys, return_inverse=True)[1]
    num_keys = int(codes.max()) + 1
    counts = np.bincount(codes * num_bins + rows, minlength=num_keys * num_bins).reshape(num_keys, num_bins)
    of_draw = np.arange(DRAWS_AT_ONCE)[:, None] * num_keys
    drawn = []
    for _ in range(num_draws // DRAWS_AT_ONCE):
        picked = of_draw + generator.integers(num_keys, size=(DRAWS_AT_ONCE, num_keys - 1))
        times = np.bincount(picked.ravel(), minlength=DRAWS_AT_ONCE * num_keys).reshape(DRAWS_AT_ONCE, num_keys)
        drawn.append(times.astype(np.float64) @ counts)
    return np.concatenate(drawn).astype(np.int64)


def _effective(keys: IntArray) -> float:
    """Return Kish's effective number of independent rows, which is the number of keys if all have equal size."""
    sizes = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def stability_index(reference: IntArray, window: IntArray) -> FloatArray:
    """Return the population stability index of each row of counts [K, B]: the sum of (q - p) log(q / p)."""
    smoothed = [counts + PSEUDO_COUNT for counts in (reference, window)]
    p, q = (counts / counts.sum(1, keepdims=True) for counts in smoothed)
    return np.asarray(((q - p) * np.log(q / p)).sum(1))


def threshold_at(values: FloatArray, rate: float) -> float:
    """Return the smallest value that at most the share `rate` of the values exceeds."""
    return float(np.quantile(values, 1 - rate, method="higher"))


def _normalised(embeddings: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)


def nearest_distances(rows: Embeddings, others: Embeddings, *, keys: IntArray | None = None) -> FloatArray:
    """Return the cosine distance [N] of each row to the nearest other row; with `keys`, to one of another key."""
    distances = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        similarities = rows[start : start + BLOCK_ROWS] @ others.T
        if keys is not None:
            similarities[keys[start : start + BLOCK_ROWS, None] == keys[None]] = -np.inf
        distances[start : start + BLOCK_ROWS] = 1 - similarities.max(1)
    return distances
