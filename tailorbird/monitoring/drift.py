"""Whether what is asked today is still what the champion was judged on: four statistics, each beside its own threshold.

Thresholds are those that clean windows exceed at a stated rate: nothing is compared with a rule of thumb. A clean
window is one of independent rows: of a reference it is known which rows belong together (a document's, a patient's), of
what was asked it is not, so that a window of few documents looks like drift.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

FloatArray = NDArray[np.float64]

FAR_SHARE = 0.01
"""Of the reference's rows, those that lie farther from their nearest neighbour count as far."""
NUM_BINS = 10
NUM_DRAWS = 20_000
SMOOTHED = 0.5
"""Rows that are added to each bin: a class that the reference never saw has some chance too (Jeffreys)."""
RIDGE = 1.0
BLOCK_ROWS = 1024
SEED = 1979
LEAST_ROWS = 50
"""Of a window or a reference, for anything to be said."""
LEAST_KEYS = 20
"""Of a reference: few documents do not tell how much others differ. Of 2, 3, 5, 10, 20 and 50 it is the least with
which clean windows alarmed no more often than stated."""
DRAWS_AT_ONCE = 200


class DriftError(ValueError):
    """A window or a reference of which nothing can be said; the message says why."""


@dataclass(frozen=True, eq=False)
class Asked:
    """What was asked in a window of time, or the rows that the champion was chosen on, without their text."""

    confidences: FloatArray
    """[N] the champion's calibrated confidence."""
    outputs: Sequence[str]
    """[N] what it answered."""
    embeddings: NDArray[np.float32] | None = None
    """[M, D] of some of the rows or all, by the pretrained encoder; None where no text is kept."""
    keys: NDArray[np.int64] | None = None
    """[N] of a reference, what its rows share where they are not independent (a document, a patient), by number. A
    reference with embeddings has one for each row, so that M is N."""

    def __len__(self) -> int:
        return len(self.confidences)


@dataclass(frozen=True)
class Sign:
    """One statistic of a window beside its threshold."""

    name: str
    """`unfamiliar`, `confidence`, `classes` or `told apart`."""
    what: str
    """For people."""
    value: float
    threshold: float
    """What a clean window of this size exceeds at `rate`."""
    rate: float
    n: int
    """Rows of the window behind it."""

    @property
    def alarm(self) -> bool:
        """Whether a clean window would hardly look like this."""
        return self.value > self.threshold


def drift_signs(window: Asked, *, reference: Asked, rate: float) -> tuple[Sign, ...]:
    """Every statistic that can be had, the one that finds most first; all together alarm on a clean window at `rate`.

    Without embeddings of both, the first and the last are left out; where few keys have nearly all rows, the last.
    Raises DriftError for less than 50 rows, and for a reference of less than 20 keys.
    """
    for name, asked in (("the window", window), ("the reference", reference)):
        if len(asked) < LEAST_ROWS:
            raise DriftError(f"{name} has {len(asked)} rows, which says nothing of drift; give at least {LEAST_ROWS}")
    keys = np.arange(len(reference)) if reference.keys is None else reference.keys
    num_keys = len(np.unique(keys))
    if num_keys < LEAST_KEYS:
        raise DriftError(
            f"all {len(reference)} rows of the reference share {num_keys} of data.split_by's keys, which do not say "
            f"how much others differ; give validation rows of at least {LEAST_KEYS}"
        )
    embedded = [asked.embeddings for asked in (window, reference)]
    can_embed = all(found is not None and len(found) >= LEAST_ROWS for found in embedded)
    each = rate / (4 if can_embed else 2)
    signs = [
        confidence_sign(window, reference=reference, rate=each),
        classes_sign(window, reference=reference, rate=each),
    ]
    if window.embeddings is None or reference.embeddings is None or not can_embed:
        return tuple(signs)
    ours, theirs = (_normalised(found) for found in (window.embeddings, reference.embeddings))
    apart = told_apart_sign(ours, reference=theirs, keys=keys, rate=each)
    return (
        unfamiliar_sign(ours, reference=theirs, keys=keys, rate=each),
        *signs,
        *([] if apart is None else [apart]),
    )


def unfamiliar_sign(
    window: NDArray[np.float32], *, reference: NDArray[np.float32], keys: NDArray[np.int64], rate: float
) -> Sign:
    """Share of the texts that lie farther from their nearest reference row than 99 % of those from one another.

    Of a reference row the nearest with another key counts: what is asked comes of other documents than it. The chance
    of a fresh row to be farther than the j-th farthest of n is Beta(j, n + 1 - j) where all come from one distribution;
    a clean window of m rows draws from a binomial with it. Rows of one key are no n: their effective number counts for
    it. Both embeddings [N, D] have length 1.
    """
    apart = np.sort(_nearest(reference, reference, apart_from=keys))
    far = max(1, int(FAR_SHARE * len(apart)))
    share = float((_nearest(window, reference) > apart[-far]).mean())
    generator = np.random.default_rng(SEED)
    num = _effective(keys)
    farthest = max(1.0, far * num / len(apart))  # of few keys, the farthest key's rows
    chances = generator.beta(farthest, num + 1 - farthest, NUM_DRAWS)
    clean = generator.binomial(len(window), chances) / len(window)
    what = "texts farther from every reference text than 99 % of those from one another"
    return Sign("unfamiliar", what, share, _exceeded_at(clean, rate), rate, len(window))


def confidence_sign(window: Asked, *, reference: Asked, rate: float) -> Sign:
    """Population stability index of the confidence, in ten bins that hold as many reference rows each."""
    edges = np.unique(np.quantile(reference.confidences, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    theirs, ours = (np.searchsorted(edges, asked.confidences, side="right") for asked in (reference, window))
    what = "stability index of the confidence"
    value, threshold = _stability(theirs, window=ours, num_bins=len(edges) + 1, keys=reference.keys, rate=rate)
    return Sign("confidence", what, value, threshold, rate, len(window))


def classes_sign(window: Asked, *, reference: Asked, rate: float) -> Sign:
    """Population stability index of the classes that were answered."""
    names = sorted({*reference.outputs, *window.outputs})
    places = {name: place for place, name in enumerate(names)}
    theirs, ours = (np.array([places[name] for name in asked.outputs]) for asked in (reference, window))
    value, threshold = _stability(theirs, window=ours, num_bins=len(names), keys=reference.keys, rate=rate)
    return Sign("classes", "stability index of the answers' classes", value, threshold, rate, len(window))


def told_apart_sign(
    window: NDArray[np.float32], *, reference: NDArray[np.float32], keys: NDArray[np.int64], rate: float
) -> Sign | None:
    """How well a linear classifier tells texts of the window from reference texts (area under the curve).

    It learns on one half of both and is judged on the other, whose scores are exchangeable where both come from one
    distribution: the threshold is the Mann-Whitney statistic's, in which the effective number of the reference's rows
    counts. One key of the reference is in one half; None where a half is empty. Lopez-Paz and Oquab, ICLR 2017.
    """
    generator = np.random.default_rng(SEED)
    size = min(len(window), len(reference)) // 2
    first = np.isin(keys, generator.permutation(np.unique(keys))[::2])
    ours, theirs = generator.permutation(len(window)), generator.permutation(len(reference))  # a file has an order
    is_first = first[theirs]
    window_parts = ours[::2][:size], ours[1::2][:size]
    reference_parts = theirs[is_first][:size], theirs[~is_first][:size]
    learned = np.concatenate([window[window_parts[0]], reference[reference_parts[0]]]).astype(np.float64)
    signs = np.concatenate([np.full(len(window_parts[0]), 1.0), np.full(len(reference_parts[0]), -1.0)])
    centre = learned.mean(0)
    gram = (learned - centre).T @ (learned - centre) + RIDGE * np.eye(learned.shape[1])
    direction = np.linalg.solve(gram, (learned - centre).T @ signs)
    ranks = rankdata(np.concatenate([window[window_parts[1]], reference[reference_parts[1]]]) @ direction)
    num, other = len(window_parts[1]), len(reference_parts[1])
    area = float((ranks[:num].sum() - num * (num + 1) / 2) / (num * other))
    other_effective = _effective(keys[reference_parts[1]])
    variance = (num + other_effective + 1) / (12 * num * other_effective)
    threshold = 0.5 + norm.isf(rate) * np.sqrt(variance)
    what = "area under the curve of a classifier that tells the texts from reference texts"
    return Sign("told apart", what, area, float(threshold), rate, len(window))


def _stability(
    reference: NDArray[np.int64],
    *,
    window: NDArray[np.int64],
    num_bins: int,
    keys: NDArray[np.int64] | None,
    rate: float,
) -> tuple[float, float]:
    """The index of rows by their bins [N], and what pairs of a reference and a window of one distribution exceed at
    `rate`.

    References are drawn by whole keys, one less than there are: that many draws with replacement have the variance of
    the whole number of independent ones (Rao and Wu, JASA 83, 1988). A window's rows are drawn one by one.
    """
    generator = np.random.default_rng(SEED)
    theirs, ours = (np.bincount(rows, minlength=num_bins) for rows in (reference, window))
    chances = (theirs + SMOOTHED) / (theirs + SMOOTHED).sum()
    num_draws = NUM_DRAWS // 10
    if keys is None:
        references = generator.multinomial(len(reference), chances, num_draws)
    else:
        references = _by_keys(generator, reference, keys=keys, num_bins=num_bins, num_draws=num_draws)
    thresholds = _index(references, generator.multinomial(len(window), chances, num_draws))
    return float(_index(theirs[None], ours[None])[0]), _exceeded_at(thresholds, rate)


def _by_keys(
    generator: np.random.Generator, rows: NDArray[np.int64], *, keys: NDArray[np.int64], num_bins: int, num_draws: int
) -> NDArray[np.int64]:
    """Counts [K, B] of draws of whole keys with replacement."""
    places = np.unique(keys, return_inverse=True)[1]
    num_keys = int(places.max()) + 1
    counts = np.bincount(places * num_bins + rows, minlength=num_keys * num_bins).reshape(num_keys, num_bins)
    of_draw = np.arange(DRAWS_AT_ONCE)[:, None] * num_keys
    drawn = []
    for _ in range(num_draws // DRAWS_AT_ONCE):
        picked = of_draw + generator.integers(num_keys, size=(DRAWS_AT_ONCE, num_keys - 1))
        times = np.bincount(picked.ravel(), minlength=DRAWS_AT_ONCE * num_keys).reshape(DRAWS_AT_ONCE, num_keys)
        drawn.append(times.astype(np.float64) @ counts)
    return np.concatenate(drawn).astype(np.int64)


def _effective(keys: NDArray[np.int64]) -> float:
    """How many independent rows say as much where all of a key say the same: Kish's number, that of the keys where each
    has as many rows."""
    sizes = np.unique(keys, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _index(reference: NDArray[np.int64], window: NDArray[np.int64]) -> FloatArray:
    """Population stability index of each row of counts [K, B]: the sum of (q - p) log(q / p)."""
    p, q = (_shares(counts) for counts in (reference, window))
    return np.asarray(((q - p) * np.log(q / p)).sum(1))


def _shares(counts: NDArray[np.int64]) -> FloatArray:
    smoothed = counts + SMOOTHED
    return np.asarray(smoothed / smoothed.sum(1, keepdims=True))


def _exceeded_at(values: FloatArray, rate: float) -> float:
    """The smallest of the values that at most a share of `rate` of them exceeds."""
    return float(np.quantile(values, 1 - rate, method="higher"))


def _normalised(embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(embeddings, axis=1, keepdims=True)
    return np.asarray(embeddings / np.maximum(lengths, 1e-12), dtype=np.float32)


def _nearest(
    rows: NDArray[np.float32], others: NDArray[np.float32], *, apart_from: NDArray[np.int64] | None = None
) -> FloatArray:
    """[N] cosine distance of each row to the nearest of the others, or of those with another key than its own."""
    found = np.empty(len(rows))
    for start in range(0, len(rows), BLOCK_ROWS):
        near = rows[start : start + BLOCK_ROWS] @ others.T
        if apart_from is not None:
            near[apart_from[start : start + BLOCK_ROWS, None] == apart_from[None]] = -np.inf
        found[start : start + BLOCK_ROWS] = 1 - near.max(1)
    return found
