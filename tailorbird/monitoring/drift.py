"""Statistics of drift between traffic and the reference rows of the champion, each with a computed threshold.

A threshold comes from simulated windows without drift. Their days differ as the days of this window and of earlier
clean windows do; see `monitoring.day_variance`. Dependent rows of a document or a patient are known in the reference
but not in traffic, so a window of few documents looks like drift.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata, t

from tailorbird.monitoring.day_variance import (
    ONE_DAY,
    DayVariance,
    DesignEffect,
    design_effect,
    effective_rows,
    variance_of_counts,
    variance_of_scores,
    varied_shares,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Embeddings = NDArray[np.float32]

DAYS_PER_YEAR = 365.25
FAR_SHARE = 0.01  # share of the reference rows that count as far from their nearest neighbour
NUM_BINS = 10
NUM_DRAWS = 20_000
NUM_REFERENCE_DRAWS = 2_000
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

    confidences: FloatArray  # [N] calibrated confidences of the champion; NaN for an answer without one
    outputs: Sequence[str]  # [N] answers of the champion
    embeddings: Embeddings | None = None  # [M, D] of the rows with texts, by the pretrained encoder
    keys: IntArray | None = None
    """[N] (reference only) integers that are equal for dependent rows, such as those of a document or a patient. A
    reference with embeddings has one embedding per row, so M is N."""
    lengths: FloatArray | None = None  # [N] (chat) lengths of the texts in characters
    days: IntArray | None = None  # [N] (window only) numbers of the days of the answers; None for a single day
    text_days: IntArray | None = None  # [M] (window only) numbers of the days of the embedded texts

    def __len__(self) -> int:
        return len(self.confidences)


@dataclass(frozen=True)
class DriftStatistic:
    """A drift statistic of a window, with its threshold."""

    name: str  # `unfamiliar`, `confidence`, `classes`, `length` or `two-sample`
    description: str
    value: float
    threshold: float
    per_year: float  # expected days per year on which a window without drift exceeds the threshold
    n: int  # number of rows in the window
    variance: DayVariance = ONE_DAY  # between the days of this window; later windows use it too

    @property
    def alarm(self) -> bool:
        return self.value > self.threshold


@dataclass(frozen=True)
class _Limit:
    """The false alarms that a statistic may raise, and what clean windows tell about its days."""

    per_year: float
    clean: Sequence[DayVariance]

    @property
    def rate(self) -> float:
        return self.per_year / DAYS_PER_YEAR


@dataclass(frozen=True, eq=False)
class _Texts:
    """Embeddings of length 1 of the window and the reference, with the days of the one and the keys of the other."""

    window: Embeddings  # [M, D]
    reference: Embeddings  # [N, D]
    days: IntArray  # [M]
    keys: IntArray  # [N]


def drift_statistics(
    window: TrafficSample,
    *,
    reference: TrafficSample,
    per_year: float,
    clean: Sequence[Sequence[DriftStatistic]] = (),
) -> tuple[DriftStatistic, ...]:
    """Return all statistics that can be computed, the most powerful first.

    Without drift, any of them exceeds its threshold on `per_year` days per year, if a window ends on each day. `clean`
    has the statistics of earlier windows without alarms; no two of these windows share a day. Without embeddings of
    both samples, the first and the last statistic are omitted. If the reference has lengths, as for chat, they are
    compared instead of confidences and classes. The last one is also omitted if the window has texts of
    one day only, or if few keys have nearly all rows. Raises DriftError for fewer than 50 rows, and for a reference
    with fewer than 20 keys.
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
    can_embed = all(
        sample.embeddings is not None and len(sample.embeddings) >= MIN_ROWS for sample in (window, reference)
    )
    of_rows = {"confidence": confidence_statistic, "classes": classes_statistic}
    if reference.lengths is not None:
        of_rows = {"length": length_statistic}
    limits = _limits(per_year / (len(of_rows) + (2 if can_embed else 0)), clean)
    statistics = [statistic(window, reference=reference, limit=limits[name]) for name, statistic in of_rows.items()]
    if window.embeddings is None or reference.embeddings is None or not can_embed:
        return tuple(statistics)
    days = np.zeros(len(window.embeddings), np.int64) if window.text_days is None else window.text_days
    texts = _Texts(_normalised(window.embeddings), _normalised(reference.embeddings), days, keys)
    unfamiliar = unfamiliar_statistic(texts, limit=limits["unfamiliar"])
    two_sample = classifier_two_sample_test(texts, limit=limits["two-sample"])
    return (unfamiliar, *statistics, *([] if two_sample is None else [two_sample]))


def _limits(per_year: float, clean: Sequence[Sequence[DriftStatistic]]) -> Mapping[str, _Limit]:
    variances: dict[str, list[DayVariance]] = {
        name: [] for name in ("unfamiliar", "confidence", "classes", "length", "two-sample")
    }
    for statistic in (statistic for statistics in clean for statistic in statistics):
        variances[statistic.name].append(statistic.variance)
    return {name: _Limit(per_year, measured) for name, measured in variances.items()}


def unfamiliar_statistic(texts: _Texts, *, limit: _Limit) -> DriftStatistic:
    """Return the share of texts that are farther from their nearest reference row than 99% of the reference rows.

    For a reference row, only neighbours with another key count, because traffic comes from other documents. If all rows
    come from one distribution, the probability that a new row is farther than the j-th farthest of n has a
    Beta(j, n + 1 - j) distribution. n is the effective number of rows, because rows of one key are dependent. In a
    window, the share varies around this probability between days, and the number of such rows is binomial.
    """
    ours, theirs, days, keys = texts.window, texts.reference, texts.days, texts.keys
    distances = np.sort(nearest_distances(theirs, theirs, keys=keys))
    num_far = max(1, int(FAR_SHARE * len(distances)))
    is_far = nearest_distances(ours, theirs) > distances[-num_far]
    variance = variance_of_counts(_counts(is_far.astype(np.int64), num_bins=2, days=days))
    generator = np.random.default_rng(SEED)
    num = effective_rows(keys)
    farthest = max(1.0, num_far * num / len(distances))  # at least one row, for references with few keys
    chances = generator.beta(farthest, num + 1 - farthest, NUM_DRAWS)
    design = design_effect(days, (*limit.clean, variance))
    shares = varied_shares(generator, np.stack([chances, 1 - chances], 1), size=len(ours), design=design)[:, 0]
    clean = generator.binomial(len(ours), shares) / len(ours)
    description = "share of texts farther from the reference than 99% of the reference texts"
    threshold = threshold_at(clean, limit.rate)
    value = float(is_far.mean())
    return DriftStatistic("unfamiliar", description, value, threshold, limit.per_year, len(ours), variance)


def confidence_statistic(window: TrafficSample, *, reference: TrafficSample, limit: _Limit) -> DriftStatistic:
    """Return the population stability index of the confidence, in ten bins with equal numbers of reference rows.

    Answers without a confidence (NaN), such as those of an endpoint without log-probabilities, have an eleventh bin.
    """
    theirs, ours, num_bins = _quantile_bins(reference.confidences, window.confidences)
    counts = _counts(ours, num_bins=num_bins, days=window.days)
    description = "population stability index of the confidence"
    return _stability("confidence", description, counts=counts, reference=theirs, keys=reference.keys, limit=limit)


def length_statistic(window: TrafficSample, *, reference: TrafficSample, limit: _Limit) -> DriftStatistic:
    """Return the population stability index of the lengths of the texts, in ten bins as those of the confidence."""
    assert window.lengths is not None
    assert reference.lengths is not None
    theirs, ours, num_bins = _quantile_bins(reference.lengths, window.lengths)
    counts = _counts(ours, num_bins=num_bins, days=window.days)
    description = "population stability index of the length of the last message"
    return _stability("length", description, counts=counts, reference=theirs, keys=reference.keys, limit=limit)


def _quantile_bins(reference: FloatArray, window: FloatArray) -> tuple[IntArray, IntArray, int]:
    """Return the bins of both samples and the number of bins: deciles of the reference, and one for NaN if any is."""
    known = reference[np.isfinite(reference)]
    edges = np.unique(np.quantile(known, np.linspace(0, 1, NUM_BINS + 1)[1:-1])) if len(known) else np.empty(0)
    num_bins = len(edges) + 2

    def binned(values: FloatArray) -> IntArray:
        bins = np.searchsorted(edges, values, side="right")
        return np.where(np.isfinite(values), bins, num_bins - 1)

    theirs, ours = binned(reference), binned(window)
    if (theirs < num_bins - 1).all() and (ours < num_bins - 1).all():
        num_bins -= 1  # an empty bin would change the thresholds of models with confidences
    return theirs, ours, num_bins


def classes_statistic(window: TrafficSample, *, reference: TrafficSample, limit: _Limit) -> DriftStatistic:
    """Return the population stability index of the predicted classes."""
    names = sorted({*reference.outputs, *window.outputs})
    codes = {name: code for code, name in enumerate(names)}
    theirs, ours = (np.array([codes[name] for name in sample.outputs]) for sample in (reference, window))
    counts = _counts(ours, num_bins=len(names), days=window.days)
    description = "population stability index of the predicted classes"
    return _stability("classes", description, counts=counts, reference=theirs, keys=reference.keys, limit=limit)


def classifier_two_sample_test(texts: _Texts, *, limit: _Limit) -> DriftStatistic | None:
    """Return the area under the ROC curve of linear classifiers of window texts against reference texts.

    The days of the window and the keys of the reference are divided into two halves at random. A classifier is fitted
    on each half and scores the other half, so what is peculiar to a day cannot help to recognize the window. Without
    drift, the area is that of the Mann-Whitney statistic, with the effective number of reference rows and the variance
    between days. Returns None for a window of one day, and if a half is empty.
    Source: Lopez-Paz and Oquab, ICLR 2017.
    """
    ours, theirs, days, keys = texts.window, texts.reference, texts.days, texts.keys
    generator = np.random.default_rng(SEED)
    halves = [_half(generator, days), _half(generator, keys)]
    if any(not 0 < half.sum() < len(half) for half in halves):
        return None
    percentiles = np.empty(len(ours))  # share of the reference rows with a lower score
    for is_first in (True, False):
        fit, scored = ([half == side for half in halves] for side in (is_first, not is_first))
        direction = _direction(ours[fit[0]], theirs[fit[1]], generator=generator)
        scores = ours[scored[0]] @ direction, theirs[scored[1]] @ direction
        ranks = rankdata(np.concatenate(scores))[: len(scores[0])] - rankdata(scores[0])
        percentiles[scored[0]] = ranks / len(scores[1])
    variance = variance_of_scores(percentiles, days)
    design = design_effect(days, (*limit.clean, variance))
    others = effective_rows(keys)
    spread = np.sqrt((design.effect / len(ours) + 1 / others + 1 / (len(ours) * others)) / 12)
    threshold = 0.5 + float(t.isf(limit.rate, design.freedom) * spread)
    description = "area under the ROC curve of a classifier of window texts against reference texts"
    area = float(percentiles.mean())
    return DriftStatistic("two-sample", description, area, threshold, limit.per_year, len(ours), variance)


def _half(generator: np.random.Generator, keys: IntArray) -> NDArray[np.bool_]:
    """Return a mask [N] of the rows of every second key, in random order."""
    return np.isin(keys, generator.permutation(np.unique(keys))[::2])


def _direction(window: Embeddings, reference: Embeddings, *, generator: np.random.Generator) -> FloatArray:
    """Return the weights [D] of a ridge regression of window rows against equally many reference rows."""
    size = min(len(window), len(reference))
    rows = [generator.permutation(len(sample))[:size] for sample in (window, reference)]  # files may be sorted
    fitted = np.concatenate([window[rows[0]], reference[rows[1]]]).astype(np.float64)
    targets = np.repeat([1.0, -1.0], size)
    centred = fitted - fitted.mean(0)
    gram = centred.T @ centred + RIDGE * np.eye(fitted.shape[1])
    return np.asarray(np.linalg.solve(gram, centred.T @ targets))


def _counts(rows: IntArray, *, num_bins: int, days: IntArray | None) -> IntArray:
    """Return the counts [D, B] of binned rows [N] by day."""
    codes = np.zeros(len(rows), np.int64) if days is None else np.unique(days, return_inverse=True)[1]
    num_days = int(codes.max()) + 1
    return np.bincount(codes * num_bins + rows, minlength=num_days * num_bins).reshape(num_days, num_bins)


def _stability(
    name: str, description: str, *, counts: IntArray, reference: IntArray, keys: IntArray | None, limit: _Limit
) -> DriftStatistic:
    """Return the stability index of a window with these counts [D, B] by day, against binned reference rows [N]."""
    theirs, ours = np.bincount(reference, minlength=counts.shape[1]), counts.sum(0)
    variance, size = variance_of_counts(counts), int(counts.sum())
    design = design_effect(np.repeat(np.arange(len(counts)), counts.sum(1)), (*limit.clean, variance))
    keys = np.arange(len(reference)) if keys is None else keys
    clean = clean_stability(reference, keys=keys, num_bins=counts.shape[1], size=size, design=design)
    value = float(stability_index(theirs[None], ours[None])[0])
    threshold = threshold_at(clean, limit.rate)
    return DriftStatistic(name, description, value, threshold, limit.per_year, size, variance)


def clean_stability(
    reference: IntArray, *, keys: IntArray, num_bins: int, size: int, design: DesignEffect
) -> FloatArray:
    """Return the stability indices [K] of simulated windows without drift, against binned reference rows [N].

    The reference is resampled by whole keys, one fewer than it has: K - 1 draws with replacement have the variance of
    K independent keys (Rao and Wu, JASA 83, 1988). Each window has `size` rows and varies with the design effect.
    """
    generator = np.random.default_rng(SEED)
    theirs = np.bincount(reference, minlength=num_bins) + PSEUDO_COUNT
    shares = np.tile(theirs / theirs.sum(), (NUM_REFERENCE_DRAWS, 1))
    if len(np.unique(keys)) == len(keys):
        references = generator.multinomial(len(reference), shares[0], NUM_REFERENCE_DRAWS)
    else:
        references = _resampled_by_key(generator, reference, keys=keys, num_bins=num_bins, num_draws=len(shares))
    indices = []
    for _ in range(NUM_DRAWS // NUM_REFERENCE_DRAWS):  # limits the memory for many classes
        varied = varied_shares(generator, shares, size=size, design=design)
        indices.append(stability_index(references, generator.multinomial(size, varied)))
    return np.concatenate(indices)


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
