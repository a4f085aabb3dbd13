"""Whether what is asked today is still what the champion was judged on: four statistics, each beside its own threshold.

Thresholds are those that clean windows, drawn from the reference by bootstrap, exceed at a stated rate: nothing is
compared with a rule of thumb.
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
    """[M] of a reference, what its rows share where they are not independent (a document, a patient), by number."""

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

    Without embeddings of both, the first and the last are left out. Raises DriftError for less than 50 rows.
    """
    for name, asked in (("the window", window), ("the reference", reference)):
        if len(asked) < LEAST_ROWS:
            raise DriftError(f"{name} has {len(asked)} rows, which says nothing of drift; give at least {LEAST_ROWS}")
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
    keys = np.arange(len(theirs)) if reference.keys is None else reference.keys
    return (
        unfamiliar_sign(ours, reference=theirs, keys=keys, rate=each),
        *signs,
        told_apart_sign(ours, reference=theirs, keys=keys, rate=each),
    )


def unfamiliar_sign(
    window: NDArray[np.float32], *, reference: NDArray[np.float32], keys: NDArray[np.int64], rate: float
) -> Sign:
    """Share of the texts that lie farther from their nearest reference row than 99 % of those from one another.

    Of a reference row the nearest with another key counts: what is asked comes of other documents than it. The chance
    of a fresh row to be farther than the j-th farthest of n is Beta(j, n + 1 - j) where all come from one distribution;
    a clean window of m rows draws from a binomial with it. Rows of one key are no n: as many as there are keys count
    for it. Both embeddings [N, D] have length 1.
    """
    apart = np.sort(_nearest(reference, reference, apart_from=keys))
    far = max(1, int(FAR_SHARE * len(apart)))
    share = float((_nearest(window, reference) > apart[-far]).mean())
    generator = np.random.default_rng(SEED)
    num = len(np.unique(keys))
    chances = generator.beta(far * num / len(apart), num + 1 - far * num / len(apart), NUM_DRAWS)
    clean = generator.binomial(len(window), chances) / len(window)
    what = "texts farther from every reference text than 99 % of those from one another"
    return Sign("unfamiliar", what, share, _exceeded_at(clean, rate), rate, len(window))


def confidence_sign(window: Asked, *, reference: Asked, rate: float) -> Sign:
    """Population stability index of the confidence, in ten bins that hold as many reference rows each."""
    edges = np.unique(np.quantile(reference.confidences, np.linspace(0, 1, NUM_BINS + 1)[1:-1]))
    counts = [_binned(asked.confidences, edges) for asked in (reference, window)]
    what = "stability index of the confidence"
    return _stability("confidence", what, counts[0], counts[1], rate=rate)


def classes_sign(window: Asked, *, reference: Asked, rate: float) -> Sign:
    """Population stability index of the classes that were answered."""
    names = sorted({*reference.outputs, *window.outputs})
    places = {name: place for place, name in enumerate(names)}
    counts = [
        np.bincount([places[name] for name in asked.outputs], minlength=len(names)) for asked in (reference, window)
    ]
    return _stability("classes", "stability index of the answers' classes", counts[0], counts[1], rate=rate)


def told_apart_sign(
    window: NDArray[np.float32], *, reference: NDArray[np.float32], keys: NDArray[np.int64], rate: float
) -> Sign:
    """How well a linear classifier tells texts of the window from reference texts (area under the curve).

    It learns on one half of both and is judged on the other, whose scores are exchangeable where both come from one
    distribution: the threshold is the Mann-Whitney statistic's. One key of the reference is in one half. Lopez-Paz and
    Oquab, ICLR 2017.
    """
    generator = np.random.default_rng(SEED)
    size = min(len(window), len(reference)) // 2
    first = np.isin(keys, generator.permutation(np.unique(keys))[::2])
    halves = [generator.permutation(len(window)) % 2 == 0, first]
    parts = [(rows[half][:size], rows[~half][:size]) for rows, half in zip((window, reference), halves, strict=True)]
    learned = np.concatenate([rows for rows, _ in parts]).astype(np.float64)
    signs = np.concatenate([np.full(len(rows), sign) for (rows, _), sign in zip(parts, (1.0, -1.0), strict=True)])
    centre = learned.mean(0)
    gram = (learned - centre).T @ (learned - centre) + RIDGE * np.eye(learned.shape[1])
    direction = np.linalg.solve(gram, (learned - centre).T @ signs)
    ours, theirs = (rows @ direction for _, rows in parts)
    ranks = rankdata(np.concatenate([ours, theirs]))
    num, other = len(ours), len(theirs)
    area = float((ranks[:num].sum() - num * (num + 1) / 2) / (num * other))
    threshold = 0.5 + norm.isf(rate) * np.sqrt((num + other + 1) / (12 * num * other))
    what = "area under the curve of a classifier that tells the texts from reference texts"
    return Sign("told apart", what, area, float(threshold), rate, len(window))


def _stability(name: str, what: str, reference: NDArray[np.int64], window: NDArray[np.int64], *, rate: float) -> Sign:
    """The index of two counts [B], and that of pairs of a reference and a window that come from one distribution."""
    generator = np.random.default_rng(SEED)
    chances = (reference + SMOOTHED) / (reference + SMOOTHED).sum()
    clean = [generator.multinomial(counts.sum(), chances, NUM_DRAWS // 10) for counts in (reference, window)]
    thresholds = _index(clean[0], clean[1])
    value = float(_index(reference[None], window[None])[0])
    return Sign(name, what, value, _exceeded_at(thresholds, rate), rate, int(window.sum()))


def _index(reference: NDArray[np.int64], window: NDArray[np.int64]) -> FloatArray:
    """Population stability index of each row of counts [K, B]: the sum of (q - p) log(q / p)."""
    p, q = (_shares(counts) for counts in (reference, window))
    return np.asarray(((q - p) * np.log(q / p)).sum(1))


def _shares(counts: NDArray[np.int64]) -> FloatArray:
    smoothed = counts + SMOOTHED
    return np.asarray(smoothed / smoothed.sum(1, keepdims=True))


def _binned(values: FloatArray, edges: FloatArray) -> NDArray[np.int64]:
    return np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)


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
