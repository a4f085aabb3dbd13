"""Drift of traffic from the rows that the champion was evaluated on: statistics, each with a computed threshold.

Clean windows, of independent rows, exceed a threshold at a stated rate. Which rows belong together (a document, a
patient) is known of a reference but not of the traffic, so a window of few documents looks like drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Embeddings = NDArray[np.float32]

FAR_SHARE = 0.01  # of the reference's rows, the farthest from their nearest neighbour, that count as far
NUM_BINS = 10
NUM_DRAWS = 20_000
PSEUDO_COUNT = 0.5  # rows added to each bin: a class that the reference lacks has some probability too (Jeffreys)
RIDGE = 1.0
BLOCK_ROWS = 1024
SEED = 1979
MIN_ROWS = 50  # of a window or a reference
MIN_KEYS = 20
"""Of a reference: few documents do not tell how much others differ. Of 2, 3, 5, 10, 20 and 50 the smallest with which
clean windows alarmed no more often than stated."""
DRAWS_AT_ONCE = 200


class DriftError(ValueError):
    """A window or a reference too small for any statistic; the message says why."""


@dataclass(frozen=True, eq=False)
class TrafficSample:
    """Answers of a window of time, or to the rows that the champion was evaluated on, without texts."""

    confidences: FloatArray  # [N] the champion's calibrated confidence
    outputs: Sequence[str]  # [N] the champion's answers
    embeddings: Embeddings | None = None  # [M, D] of some or all rows, by the pretrained encoder; None without texts
    keys: IntArray | None = None
    """[N] of a reference: integers that are equal for dependent rows (of a document, a patient). A reference with
    embeddings has one per row, so M is N."""

    def __len__(self) -> int:
        return len(self.confidences)


@dataclass(frozen=True)
class DriftStatistic:
    """A statistic of a window, with its threshold."""

    name: str  # `unfamiliar`, `confidence`, `classes` or `two-sample`
    description: str
    value: float
    threshold: float  # what a clean window of this size exceeds at `rate`
    rate: float
    n: int  # rows of the window

    @property
    def alarm(self) -> bool:
        return self.value > self.threshold


def drift_statistics(window: TrafficSample, *, reference: TrafficSample, rate: float) -> tuple[DriftStatistic, ...]:
    """Return every statistic that can be computed, the most powerful first; together they alarm on a clean window at
    `rate`.

    Without embeddings of both, the first and the last are left out; if few keys have nearly all rows, the last. Raises
    DriftError for less than 50 rows, and for a reference of less than 20 keys.
    """
    for name, sample in (("the window", window), ("the reference", reference)):
        if len(sample) < MIN_ROWS:
            raise DriftError(f"{name} has {len(sample)} rows, which says nothing of drift; give at least {MIN_ROWS}")
    keys = np.arange(len(reference)) if reference.keys is None else reference.keys
    num_keys = len(np.unique(keys))
    if num_keys < MIN_KEYS:
        raise DriftError(
            f"all {len(reference)} rows of the reference share {num_keys} of data.split_by's keys, which do not say "
            f"how much others differ; give validation rows of at least {MIN_KEYS}"
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
    """Return the share of texts farther from their nearest reference row than 99 % of the reference rows are.

    Of a reference row the nearest with another key counts: traffic comes from other documents. The probability that a
    fresh row is farther than the j-th farthest of n is Beta(j, n + 1 - j) if all come from one distribution; a clean
    window of m rows draws from a binomial with it. n is the effective number of rows, since rows of one key are
    dependent. Both embeddings [N, D] have length 1.
    """
    distances = np.sort(nearest_distances(reference, reference, keys=keys))
    far = max(1, int(FAR_SHARE * len(distances)))
    share = float((nearest_distances(window, reference) > distances[-far]).mean())
    generator = np.random.default_rng(SEED)
    num = _effective(keys)
    farthest = max(1.0, far * num / len(distances))  # of few keys, the farthest key's rows
    chances = generator.beta(farthest, num + 1 - farthest, NUM_DRAWS)
    clean = generator.binomial(len(window), chances) / len(window)
    description = "texts farther from every reference text than 99 % of those from one another"
    return DriftStatistic("unfamiliar", description, share, threshold_at(clean, rate), rate, len(window))


def confidence_statistic(window: TrafficSample, *, reference: TrafficSample, rate: float) -> DriftStatistic:
    """Return the population stability index of the confidence, in ten bins with equally many reference rows."""
    edges = np.unique(np.quantile(reference.confidences, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    theirs, ours = (np.searchsorted(edges, sample.confidences, side="right") for sample in (reference, window))
    description = "stability index of the confidence"
    value, threshold = _stability(theirs, window=ours, num_bins=len(edges) + 1, keys=reference.keys, rate=rate)
    return DriftStatistic("confidence", description, value, threshold, rate, len(window))


def classes_statistic(window: TrafficSample, *, reference: TrafficSample, rate: float) -> DriftStatistic:
    """Return the population stability index of the predicted classes."""
    names = sorted({*reference.outputs, *window.outputs})
    codes = {name: code for code, name in enumerate(names)}
    theirs, ours = (np.array([codes[name] for name in sample.outputs]) for sample in (reference, window))
    value, threshold = _stability(theirs, window=ours, num_bins=len(names), keys=reference.keys, rate=rate)
    description = "stability index of the answers' classes"
    return DriftStatistic("classes", description, value, threshold, rate, len(window))


def classifier_two_sample_test(
    window: Embeddings, *, reference: Embeddings, keys: IntArray, rate: float
) -> DriftStatistic | None:
    """Return the area under the ROC curve of a linear classifier that tells window texts from reference texts.

    It is fitted on one half of both and evaluated on the other, whose scores are exchangeable if both come from one
    distribution: the threshold is the Mann-Whitney statistic's, with the effective number of reference rows. All rows
    of a key are in one half; None if a half is empty. Lopez-Paz and Oquab, ICLR 2017.
    """
    generator = np.random.default_rng(SEED)
    size = min(len(window), len(reference)) // 2
    first = np.isin(keys, generator.permutation(np.unique(keys))[::2])
    ours, theirs = generator.permutation(len(window)), generator.permutation(len(reference))  # files are ordered
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
    description = "area under the curve of a classifier that tells the texts from reference texts"
    return DriftStatistic("two-sample", description, area, float(threshold), rate, len(window))


def _stability(
    reference: IntArray, *, window: IntArray, num_bins: int, keys: IntArray | None, rate: float
) -> tuple[float, float]:
    """Return the index of binned rows [N], and its threshold at `rate` under one distribution.

    References are resampled by whole keys, one less than there are: that many draws with replacement have the variance
    of the whole number of independent ones (Rao and Wu, JASA 83, 1988). Window rows are resampled one by one.
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
    """Return counts [K, B] of draws of whole keys with replacement."""
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
    """Return Kish's effective number of independent rows; the number of keys if all have equally many rows."""
    sizes = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def stability_index(reference: IntArray, window: IntArray) -> FloatArray:
    """Return the population stability index of each row of counts [K, B]: the sum of (q - p) log(q / p)."""
    smoothed = [counts + PSEUDO_COUNT for counts in (reference, window)]
    p, q = (counts / counts.sum(1, keepdims=True) for counts in smoothed)
    return np.asarray(((q - p) * np.log(q / p)).sum(1))


def threshold_at(values: FloatArray, rate: float) -> float:
    """Return the smallest value that at most a share `rate` of the values exceeds."""
    return float(np.quantile(values, 1 - rate, method="higher"))


def _normalised(embeddings: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)


def nearest_distances(rows: Embeddings, others: Embeddings, *, keys: IntArray | None = None) -> FloatArray:
    """Return the cosine distance [N] of each row to the nearest other; with `keys`, to the nearest of another key."""
    distances = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        similarities = rows[start : start + BLOCK_ROWS] @ others.T
        if keys is not None:
            similarities[keys[start : start + BLOCK_ROWS, None] == keys[None]] = -np.inf
        distances[start : start + BLOCK_ROWS] = 1 - similarities.max(1)
    return distances
