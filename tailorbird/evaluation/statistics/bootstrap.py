"""Paired bootstrap and permutation: interval and p value of effects without a closed formula."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tailorbird.evaluation.predictions import Predictions

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_RESAMPLES = 10_000
# Fixed, one a purpose: whoever recomputes a verdict must draw what was drawn.
BOOTSTRAP_SEED, SIGN_SEED = 1979, 1935
# A cell with fewer rows is drawn row by row, which is then cheaper than one binomial draw.
FEW_ROWS = 16
# Elements of one chunk of resamples: some 32 MB at 8 bytes each, whatever the number of rows.
CHUNK_ELEMENTS = 4_000_000
# Gains nearer to 0 than this are ties: they differ from 0 by the rounding of a sum only.
ROUNDING = 1e-12


@dataclass(frozen=True)
class Effect:
    """A paired gain, candidate minus other, with its bootstrap interval and p value."""

    gain: float
    interval: tuple[float, float]
    """Percentile interval, two-sided at level 1 - alpha; macro-F1's includes the unseen rate (`unseen_rate`)."""
    p_value: float  # two-sided, of a gain of 0
    standard_error: float  # standard deviation of the resampled gains


def macro_f1(labels: Sequence[str], *, outputs: Sequence[str]) -> float:
    """Return the mean F1 over the classes that occur in the labels; labels and outputs are [N].

    As scikit-learn's `f1_score(labels, outputs, labels=sorted(set(labels)), average="macro", zero_division=0)`.
    """
    if not len(labels):
        raise ValueError("macro-F1 of no rows; give at least one")
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    truth, answers = _codes(labels, classes), _codes(outputs, classes)
    num_classes = len(classes)
    support, right = (np.bincount(codes, minlength=num_classes) for codes in (truth, truth[truth == answers]))
    answered = np.bincount(answers, minlength=num_classes + 1)[:num_classes]  # without outputs that are no class
    return float(_mean_f1(support[:, None], answered=answered[:, None], right=right[:, None])[0])


def macro_f1_effect(candidate: Predictions, *, other: Predictions, alpha: float) -> Effect:
    """Return the gain in macro-F1 by paired bootstrap of the rows: 10,000 resamples, percentile interval.

    Both must be predictions of the same rows (`predictions.align`). Resampling rows is drawing the counts of the joint
    (label, candidate's output, other's output) cells from a multinomial; where rows share documents, whole documents
    are drawn. A class of which a resample has no label does not enter its mean. p is `two_sided`'s, and at least
    2^(1 - n), since resamples of one row have no spread. The interval includes the unseen rate. Efron and Tibshirani,
    An Introduction to the Bootstrap (1993).
    """
    classes = {label: code for code, label in enumerate(sorted(set(candidate.labels)))}
    num_classes = len(classes)
    truth = _codes(candidate.labels, classes)
    ours, theirs = _codes(candidate.outputs, classes), _codes(other.outputs, classes)
    if candidate.clusters is None:
        first, counts = _distinct((truth * (num_classes + 1) + ours) * (num_classes + 1) + theirs)
        sums = _summing(truth[first], answers=(ours[first], theirs[first]), num_classes=num_classes)
        num_units = len(truth)
    else:
        documents = _numbered(candidate.clusters)
        num_units = int(documents.max()) + 1
        counts, each = np.ones(num_units, dtype=np.int64), np.arange(len(truth))
        of_documents = csr_array((np.ones_like(each), (each, documents)), shape=(len(truth), num_units))
        sums = _summing(truth, answers=(ours, theirs), num_classes=num_classes) @ of_documents

    def gains_of(weights: IntArray) -> FloatArray:
        totals = (sums @ weights.T).reshape(5, num_classes, len(weights))
        support, our_answers, our_right, their_answers, their_right = totals
        mine = _mean_f1(support, answered=our_answers, right=our_right)
        return mine - _mean_f1(support, answered=their_answers, right=their_right)

    point = gains_of(counts[None, :])[0]
    draws = multinomial_counts(counts, num_resamples=NUM_RESAMPLES, seed=BOOTSTRAP_SEED)
    gains = np.concatenate([gains_of(weights) for weights in draws])
    p_value = max(two_sided(gains), 2.0 ** (1 - num_units))
    effect = _effect(float(point), gains=gains, p_value=p_value, alpha=alpha)
    low, high = at_least_unseen(effect.interval, estimate=effect.gain, n=num_units, alpha=alpha)
    return replace(effect, interval=(max(low, -1.0), min(high, 1.0)))


def mean_effect(
    candidate_scores: FloatArray, *, other_scores: FloatArray, alpha: float, clusters: Sequence[str] | None = None
) -> Effect:
    """Return the gain in the mean per-row score [N]: bootstrap interval, and p by sign flips; 10,000 draws each.

    With `clusters`, one name a row, whole clusters are drawn and flipped, since rows of one document are not
    independent; the resampled mean is the sum of the scores drawn over the number of rows drawn. Raises ValueError for
    scores that are not finite or not paired, and for fewer than two rows or clusters, which have no spread.
    """
    ours, theirs = np.asarray(candidate_scores, dtype=np.float64), np.asarray(other_scores, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape or not np.isfinite([ours, theirs]).all():
        raise ValueError(f"scores of shapes {ours.shape} and {theirs.shape}; give two finite ones for each row")
    differences = ours - theirs
    units, sizes = differences, np.ones(len(differences), dtype=np.float64)
    if clusters is not None:
        if len(clusters) != len(differences):
            raise ValueError(f"{len(clusters)} clusters for {len(differences)} rows; give one a row")
        codes = _numbered(clusters)
        units = np.asarray(np.bincount(codes, weights=differences), dtype=np.float64)
        sizes = np.asarray(np.bincount(codes), dtype=np.float64)
    if len(units) < 2:
        what = "rows" if clusters is None else "clusters"
        raise ValueError(f"an effect of {len(units)} {what} has no spread; give at least 2 {what}")
    first, counts = _distinct(units + 1j * sizes)
    pairs = np.stack([units[first], sizes[first]])
    draws = multinomial_counts(counts, num_resamples=NUM_RESAMPLES, seed=BOOTSTRAP_SEED)
    sums = np.concatenate([pairs @ weights.T for weights in draws], axis=1)
    point = float(differences.sum() / len(differences))
    return _effect(point, gains=sums[0] / sums[1], p_value=_sign_flip(units), alpha=alpha)


def resampled(n: int, *, num_resamples: int, seed: int) -> Iterator[IntArray]:
    """Yield how often each of n rows is drawn in a resample of n rows: `num_resamples` vectors [n]."""
    generator = np.random.default_rng(seed)
    for _ in range(num_resamples):
        yield np.bincount(generator.integers(0, n, size=n), minlength=n)


def multinomial_counts(counts: IntArray, *, num_resamples: int, seed: int) -> Iterator[IntArray]:
    """Yield resamples of sum(counts) rows counted in cells: arrays [chunk, cells], `num_resamples` rows in all.

    A multinomial in two steps: how many rows fall on rare cells, then those row by row and the rest cell by cell.
    """
    generator, n = np.random.default_rng(seed), int(counts.sum())
    rare = counts < FEW_ROWS
    rare_rows = np.repeat(np.flatnonzero(rare), counts[rare])
    common = counts[~rare] / max(n - len(rare_rows), 1)
    chunk = max(1, CHUNK_ELEMENTS // len(counts))
    for start in range(0, num_resamples, chunk):
        weights = np.zeros((min(chunk, num_resamples - start), len(counts)), dtype=np.int64)
        num_rare = generator.binomial(n, len(rare_rows) / n, size=len(weights))
        if common.size:
            weights[:, ~rare] = generator.multinomial(n - num_rare, common)
        if rare_rows.size:
            for row, size in zip(weights, num_rare, strict=True):
                drawn = rare_rows[generator.integers(0, len(rare_rows), size=size)]
                row += np.bincount(drawn, minlength=len(counts))
        yield weights


def two_sided(gains: FloatArray) -> float:
    """Return 2 min(share of the gains at or under 0, at or over 0), one added to count and total; at most 1."""
    under, over = int(np.sum(gains <= ROUNDING)), int(np.sum(gains >= -ROUNDING))
    return min(1.0, 2 * (min(under, over) + 1) / (len(gains) + 1))


def _sign_flip(units: FloatArray) -> float:
    """Return the share of random signs of the differences whose sum is as far from 0 as theirs, one added to both."""
    sizes = np.abs(units[units != 0])  # no sign changes a difference of 0
    total, seen = float(sizes.sum()), abs(float(units.sum()))
    generator, as_far = np.random.default_rng(SIGN_SEED), 0
    num_bytes = -(-len(sizes) // 8)
    chunk = max(1, CHUNK_ELEMENTS // max(len(sizes), 1))
    for start in range(0, NUM_RESAMPLES, chunk):
        num = min(chunk, NUM_RESAMPLES - start)
        random = np.frombuffer(generator.bytes(num * num_bytes), dtype=np.uint8).reshape(num, num_bytes)
        positive = np.unpackbits(random, axis=1, count=len(sizes)).astype(np.float64) @ sizes
        as_far += int(np.sum(np.abs(2 * positive - total) >= seen - ROUNDING * total))
    return (as_far + 1) / (NUM_RESAMPLES + 1)


def _effect(point: float, *, gains: FloatArray, p_value: float, alpha: float) -> Effect:
    low, high = np.quantile(gains, [alpha / 2, 1 - alpha / 2])
    return Effect(point, (float(low), float(high)), p_value, float(np.std(gains, ddof=1)))


def _codes(values: Sequence[str], classes: dict[str, int]) -> IntArray:
    """Return the index of each value's class; the number of classes for an unknown value."""
    return np.fromiter((classes.get(value, len(classes)) for value in values), dtype=np.int64, count=len(values))


def _numbered(names: Sequence[str]) -> IntArray:
    """Return the index of each name, in order of first appearance."""
    return _codes(names, {name: code for code, name in enumerate(dict.fromkeys(names))})


def _distinct(values: NDArray[np.generic]) -> tuple[IntArray, IntArray]:
    """Return the first position of each distinct value, and its count, in order of first appearance."""
    _, first, counts = np.unique(values, return_index=True, return_counts=True)
    # That order is the same when the two models change places, so an effect changes its sign and nothing else.
    order = np.argsort(first)
    return first[order], counts[order]


def _summing(truth: IntArray, *, answers: tuple[IntArray, IntArray], num_classes: int) -> csr_array:
    """Return [5 L, cells] of 0 and 1 that sums cells by class: labels, and each model's answers, all and right."""
    blocks = [truth]
    for codes in answers:
        blocks += [codes, np.where(codes == truth, truth, num_classes)]
    cells = np.tile(np.arange(len(truth)), len(blocks))
    rows = np.concatenate([block + number * num_classes for number, block in enumerate(blocks)])
    known = np.concatenate(blocks) < num_classes
    ones = np.ones(int(known.sum()), dtype=np.int64)
    return csr_array((ones, (rows[known], cells[known])), shape=(len(blocks) * num_classes, len(truth)))


def _mean_f1(support: IntArray, *, answered: IntArray, right: IntArray) -> FloatArray:
    """Return the mean over classes that occur of 2 right / (support + answered); all are [L, resamples]."""
    f1 = 2 * right / np.maximum(support + answered, 1)
    # a class that does not occur has nothing right and adds 0.
    return np.asarray(f1.sum(axis=0) / (support > 0).sum(axis=0), dtype=np.float64)


def unseen_rate(n: int, *, alpha: float) -> float:
    """Return the highest share of rows with an event that, at level alpha / 2, may have occurred on none of n rows.

    Clopper and Pearson's upper limit at no event, 1 - (alpha / 2)^(1 / n): about 3.7 / n at alpha 0.05.
    """
    return 1.0 - float((alpha / 2) ** (1 / n))


def at_least_unseen(interval: tuple[float, float], *, estimate: float, n: int, alpha: float) -> tuple[float, float]:
    """Return a bootstrap interval, widened to reach the unseen rate on both sides of its estimate.

    Without it ten rows on which nothing happened would have an interval of no width, and prove anything.
    """
    margin = unseen_rate(n, alpha=alpha)
    return min(interval[0], estimate - margin), max(interval[1], estimate + margin)
