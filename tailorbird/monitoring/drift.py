"""Statistics of drift between traffic and the reference rows of the champion, each with a computed
threshold.

A threshold comes from simulated windows without drift. Their days differ as the days of this window
and of earlier clean windows do; see `monitoring.day_variance`. Dependent rows of a document or a
patient are known in the reference but not in traffic, so a window of few documents looks like
drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.monitoring.day_variance import (
    ONE_DAY,
    DayVariance,
    DesignEffect,
    design_effect,
    effective_rows,
    variance_of_counts,
    varied_shares,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Embeddings = NDArray[np.float32]

DAYS_PER_YEAR = 365.25
FAR_SHARE = 0.10  # share of the reference rows that count as far from their nearest neighbour
NUM_BINS = 10
NUM_DRAWS = 20_000
NUM_REFERENCE_DRAWS = 2_000
PSEUDO_COUNT = 0.5  # rows added to each bin (Jeffreys), so that no bin has probability 0
BLOCK_ROWS = 1024
SEED = 1979
MIN_ROWS = 50  # minimum rows of a window or a reference
MIN_KEYS = 20
"""Minimum number of keys of a reference: the smallest of 2, 3, 5, 10, 20 and 50 with which windows
without drift did not exceed the given rate. A few documents do not show how much documents differ.
"""
DESCRIPTIONS = {
    "unfamiliar": "share of texts farther from the reference than 90% of the reference texts",
    "classes": "population stability index of the predicted classes",
    "length": "population stability index of the length of the last message",
}


class DriftError(ValueError):
    """Raised if a window or a reference is too small for any statistic."""


@dataclass(frozen=True, eq=False)
class TrafficSample:
    """Answers in a window of time, or to the reference rows, without texts."""

    outputs: Sequence[str] = ()  # [N] (classification) predicted classes
    embeddings: Embeddings | None = None  # [M, D] of the rows with texts, by the pretrained encoder
    keys: IntArray | None = None
    """[N] (reference only) integers that are equal for dependent rows, such as those of a document
    or a patient. A reference with embeddings has one embedding per row, so M is N."""
    lengths: FloatArray | None = None  # [N] (chat) lengths of the texts in characters
    days: IntArray | None = None
    """[N] (window only) numbers of the days of the answers; None for a single day."""
    text_days: IntArray | None = None  # [M] (window only) numbers of the days of the embedded texts

    def __len__(self) -> int:
        if self.lengths is None:
            return len(self.outputs)
        return len(self.lengths)

    @property
    def row_keys(self) -> IntArray:
        """The keys [N]; without any, all rows are independent."""
        if self.keys is None:
            return np.arange(len(self))
        return self.keys


@dataclass(frozen=True)
class DriftStatistic:
    """A drift statistic of a window, with its threshold."""

    name: str  # of `DESCRIPTIONS`
    description: str
    value: float
    threshold: float
    per_year: float  # expected days per year on which a window without drift exceeds the threshold
    n: int  # number of rows in the window
    variance: DayVariance = ONE_DAY  # between the days of this window; later windows use it too

    @property
    def alarm(self) -> bool:
        return self.value > self.threshold


def drift_statistics(
    window: TrafficSample,
    *,
    reference: TrafficSample,
    per_year: float,
    clean: Sequence[DriftStatistic] = (),
) -> tuple[DriftStatistic, ...]:
    """Return the statistics that can be computed.

    Without drift, any of them exceeds its threshold on `per_year` days per year, if a window ends
    on each day. `clean` has the statistics of earlier windows without alarms; no two of these
    windows share a day. With embeddings of both samples, the texts are compared. If the reference
    has lengths, as for chat, they are compared, otherwise the classes. Raises DriftError for fewer
    than 50 rows, and for a reference with fewer than 20 keys.
    """
    for name, sample in (("the window", window), ("the reference", reference)):
        if len(sample) < MIN_ROWS:
            raise DriftError(
                f"{name} has {len(sample)} rows; drift statistics need at least {MIN_ROWS}"
            )
    num_keys = len(np.unique(reference.row_keys))
    if num_keys < MIN_KEYS:
        raise DriftError(
            f"the {len(reference)} rows of the reference have only {num_keys} values of "
            f"data.split_by; give validation rows with at least {MIN_KEYS}"
        )

    measures = [_stability]
    has_texts = [
        sample.embeddings is not None and len(sample.embeddings) >= MIN_ROWS
        for sample in (window, reference)
    ]
    if all(has_texts):
        measures.insert(0, _unfamiliar)
    days_per_year = per_year / len(measures)
    return tuple(
        measure(window, reference=reference, per_year=days_per_year, clean=clean)
        for measure in measures
    )


def _statistic(
    name: str,
    value: float,
    *,
    simulated: FloatArray,
    per_year: float,
    num: int,
    variance: DayVariance,
) -> DriftStatistic:
    """Return the statistic with its threshold from simulated windows without drift."""
    return DriftStatistic(
        name=name,
        description=DESCRIPTIONS[name],
        value=value,
        threshold=threshold_at(simulated, per_year / DAYS_PER_YEAR),
        per_year=per_year,
        n=num,
        variance=variance,
    )


def _design(
    name: str, variance: DayVariance, *, days: IntArray, clean: Sequence[DriftStatistic]
) -> DesignEffect:
    """Return the design effect of a window with these days [N] and this variance of the
    statistic."""
    earlier = [statistic.variance for statistic in clean if statistic.name == name]
    return design_effect(days, [*earlier, variance])


def _unfamiliar(
    window: TrafficSample,
    *,
    reference: TrafficSample,
    per_year: float,
    clean: Sequence[DriftStatistic],
) -> DriftStatistic:
    """Return the share of texts that are farther from their nearest reference row than 90% of the
    reference rows.

    For a reference row, only neighbours with another key count, because traffic comes from other
    documents. If all rows come from one distribution, the probability that a new row is farther
    than the j-th farthest of n has a Beta(j, n + 1 - j) distribution. n is the effective number of
    rows, because rows of one key are dependent. In a window, the share varies around this
    probability between days, and the number of such rows is binomial.
    """
    assert window.embeddings is not None
    assert reference.embeddings is not None
    new = _normalised(window.embeddings)
    known = _normalised(reference.embeddings)
    num = len(new)
    distances = np.sort(nearest_distances(known, known, keys=reference.row_keys))
    num_far = max(1, int(FAR_SHARE * len(distances)))
    is_far = nearest_distances(new, known) > distances[-num_far]

    days = _days(window.text_days, num=num)
    variance = variance_of_counts(_counts(is_far.astype(np.int64), num_bins=2, by=days))
    design = _design("unfamiliar", variance, days=days, clean=clean)
    generator = np.random.default_rng(SEED)
    num_effective = effective_rows(reference.row_keys)
    # At least one row, for references with few keys.
    farthest = max(1.0, num_far * num_effective / len(distances))
    chances = generator.beta(farthest, num_effective + 1 - farthest, NUM_DRAWS)
    both_shares = np.stack([chances, 1 - chances], 1)
    shares = varied_shares(generator, both_shares, size=num, design=design)[:, 0]
    return _statistic(
        "unfamiliar",
        float(is_far.mean()),
        simulated=generator.binomial(num, shares) / num,
        per_year=per_year,
        num=num,
        variance=variance,
    )


def _stability(
    window: TrafficSample,
    *,
    reference: TrafficSample,
    per_year: float,
    clean: Sequence[DriftStatistic],
) -> DriftStatistic:
    """Return the population stability index of the predicted classes, or of the lengths in ten bins
    with equal numbers of reference rows."""
    name = "classes"
    if reference.lengths is None:
        codes = np.unique([*reference.outputs, *window.outputs], return_inverse=True)[1]
    else:
        assert window.lengths is not None
        name = "length"
        edges = np.unique(np.quantile(reference.lengths, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
        lengths = np.concatenate([reference.lengths, window.lengths])
        codes = np.searchsorted(edges, lengths, side="right")
    num_bins = int(codes.max()) + 1
    reference_bins, window_bins = np.split(codes, [len(reference)])
    days = _days(window.days, num=len(window))
    variance = variance_of_counts(_counts(window_bins, num_bins=num_bins, by=days))
    reference_counts = np.bincount(reference_bins, minlength=num_bins)[None]
    window_counts = np.bincount(window_bins, minlength=num_bins)[None]
    simulated = clean_stability(
        reference_bins,
        keys=reference.row_keys,
        num_bins=num_bins,
        size=len(window),
        design=_design(name, variance, days=days, clean=clean),
    )
    return _statistic(
        name,
        float(stability_index(reference_counts, window_counts)[0]),
        simulated=simulated,
        per_year=per_year,
        num=len(window),
        variance=variance,
    )


def _days(days: IntArray | None, *, num: int) -> IntArray:
    return np.zeros(num, np.int64) if days is None else days


def _counts(rows: IntArray, *, num_bins: int, by: IntArray) -> IntArray:
    """Return the counts [D, B] of binned rows [N] by day or key [N]."""
    values, codes = np.unique(by, return_inverse=True)
    counts = np.bincount(codes * num_bins + rows, minlength=len(values) * num_bins)
    return counts.reshape(-1, num_bins)


def clean_stability(
    reference: IntArray, *, keys: IntArray, num_bins: int, size: int, design: DesignEffect
) -> FloatArray:
    """Return the stability indices [K] of simulated windows without drift, against binned reference
    rows [N].

    The reference is resampled by whole keys, one fewer than it has: K - 1 draws with replacement
    have the variance of K independent keys (Rao and Wu, JASA 83, 1988). Each window has `size` rows
    and varies with the design effect.
    """
    generator = np.random.default_rng(SEED)
    smoothed = np.bincount(reference, minlength=num_bins) + PSEUDO_COUNT
    shares = np.tile(smoothed / smoothed.sum(), (NUM_REFERENCE_DRAWS, 1))
    key_counts = _counts(reference, num_bins=num_bins, by=keys)
    num_keys = len(key_counts)
    if num_keys == len(reference):
        references = generator.multinomial(len(reference), shares[0], NUM_REFERENCE_DRAWS)
    else:
        key_shares = np.full(num_keys, 1 / num_keys)
        times = generator.multinomial(num_keys - 1, key_shares, NUM_REFERENCE_DRAWS)
        references = times @ key_counts
    indices = []
    for _ in range(NUM_DRAWS // NUM_REFERENCE_DRAWS):  # limits the memory for many classes
        varied = varied_shares(generator, shares, size=size, design=design)
        indices.append(stability_index(references, generator.multinomial(size, varied)))
    return np.concatenate(indices)


def stability_index(reference: IntArray, window: IntArray) -> FloatArray:
    """Return the population stability index of each row of counts [K, B]: the sum of (q - p) log(q
    / p)."""
    p = reference + PSEUDO_COUNT
    p /= p.sum(1, keepdims=True)
    q = window + PSEUDO_COUNT
    q /= q.sum(1, keepdims=True)
    return np.asarray(((q - p) * np.log(q / p)).sum(1))


def threshold_at(values: FloatArray, rate: float) -> float:
    """Return the smallest value that at most the share `rate` of the values exceeds."""
    return float(np.quantile(values, 1 - rate, method="higher"))


def _normalised(embeddings: Embeddings) -> Embeddings:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)


def nearest_distances(
    rows: Embeddings, candidates: Embeddings, *, keys: IntArray | None = None
) -> FloatArray:
    """Return the cosine distance [N] of each row to the nearest other row; with `keys`, to one of
    another key."""
    distances = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        similarities = rows[start : start + BLOCK_ROWS] @ candidates.T
        if keys is not None:
            similarities[keys[start : start + BLOCK_ROWS, None] == keys[None]] = -np.inf
        distances[start : start + BLOCK_ROWS] = 1 - similarities.max(1)
    return distances
