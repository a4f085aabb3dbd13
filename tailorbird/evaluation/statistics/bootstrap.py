"""Interval and p value of macro-F1 (paired bootstrap) and of mean scores (empirical likelihood, sign flips)."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.sparse import csr_array

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.distributions import norm_isf, norm_sf, t_isf
from tailorbird.evaluation.statistics.documents import Documents, documents_of, of_documents
from tailorbird.evaluation.statistics.effect import Effect, unseen_rate, with_least_p
from tailorbird.evaluation.statistics.scoring import class_codes, mean_f1

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_RESAMPLES = 10_000
# The seeds are fixed so that recomputing a verdict gives the same draws.
BOOTSTRAP_SEED, SIGN_SEED = 1979, 1935
# The quantile beyond which there are this many resamples is the last that they give.
NUM_BEYOND = 10
CHUNK_ELEMENTS = 4_000_000  # about 32 MB at 8 bytes each
# Gains closer to 0 than this are ties: only rounding separates them from 0.
ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class ResampledGain:
    """The gain in macro-F1 with its resampled gains, from which intervals at any level are computed."""

    gain: float
    resampled: FloatArray  # [NUM_RESAMPLES]
    documents: Documents | None  # None if rows are independent
    n: int  # rows
    num_differing: int  # rows, or documents, with different outputs of the two models

    @property
    def num_units(self) -> int:
        """Independent units: rows, or documents if rows share documents."""
        return self.n if self.documents is None else self.documents.num

    @property
    def standard_error(self) -> float:
        """Standard error of the gain; a bootstrap over documents is corrected by 1 - sum of squared shares."""
        if self.documents is None:
            return float(np.std(self.resampled, ddof=1))
        unevenness = float(np.sum(self.documents.shares**2))
        return float(np.std(self.resampled, ddof=1)) / math.sqrt(1 - unevenness) if self.documents.num > 1 else 1.0

    def effect(self, *, alpha: float) -> Effect:
        """Return the effect with the interval at level 1 - alpha.

        For independent rows, this is the percentile interval. Beyond the last quantile that the resamples give, a
        normal tail continues it. Without a different output, it is the unseen rate. For documents, interval and p
        value are Student's t (`of_documents`).
        """
        error = self.standard_error
        if self.documents is not None:
            return of_documents(
                self.gain,
                standard_error=error,
                documents=self.documents,
                alpha=alpha,
                num_differing=self.num_differing,
            )
        if not self.num_differing:
            unseen = unseen_rate(self.n, alpha=alpha)
            return Effect(self.gain, (-unseen, unseen), 1.0, error)
        interval = (self._end(alpha / 2, side=-1), self._end(alpha / 2, side=1))
        effect = Effect(self.gain, interval, self._p_value(), error)
        return with_least_p(effect, num_differing=self.num_differing, alpha=alpha)

    def _end(self, share: float, *, side: int) -> float:
        """Return the gain beyond which this share of the resamples is, below the gain (side -1) or above it (1)."""
        if share >= NUM_BEYOND / len(self.resampled):
            return float(np.quantile(self.resampled, share if side < 0 else 1 - share))
        last, spread = self._tail(side)
        return last + side * spread * (float(norm_isf(share)) - self._last_z)

    def _p_value(self) -> float:
        """Return the p value of `two_sided` or, if 0 is beyond the last quantile, that of the tail of `_end`."""
        side = -1 if self.gain > 0 else 1
        last, spread = self._tail(side)
        if side * last >= 0:
            return two_sided(self.resampled)
        return 2 * float(norm_sf(self._last_z + abs(last) / spread))

    def _tail(self, side: int) -> tuple[float, float]:
        """Return the last quantile that the resamples give, and the standard deviation of the normal tail beyond it."""
        share = NUM_BEYOND / len(self.resampled)
        last = float(np.quantile(self.resampled, share if side < 0 else 1 - share))
        spread = max(side * (last - self.gain) / self._last_z, self.standard_error, ROUNDING)
        return last, spread

    @property
    def _last_z(self) -> float:
        """Return the standard normal quantile at the last share that the resamples give."""
        return float(norm_isf(NUM_BEYOND / len(self.resampled)))


def macro_f1_effect(candidate: Predictions, *, other: Predictions, alpha: float) -> Effect:
    """Return the gain in macro-F1 of two models on the same rows (`macro_f1_gain`)."""
    return macro_f1_gain(candidate, other=other).effect(alpha=alpha)


def macro_f1_gain(candidate: Predictions, *, other: Predictions, rows: IntArray | None = None) -> ResampledGain:
    """Return the gain in macro-F1 on these rows (all rows by default) with a paired bootstrap of 10,000 resamples.

    Both tables must have the same rows (`predictions.align`). The counts of the joint (label, candidate's output,
    other's output) cells are drawn from a multinomial, which is equivalent to resampling rows. If rows share documents,
    whole documents are resampled. A class without labels in a resample is not part of the mean of that resample. Efron
    and Tibshirani, An Introduction to the Bootstrap (1993).
    """
    rows = np.arange(len(candidate)) if rows is None else rows
    labels = [candidate.labels[row] for row in rows]
    classes = {label: code for code, label in enumerate(sorted(set(labels)))}
    num_classes = len(classes)
    truth = class_codes(labels, classes)
    ours, theirs = (class_codes([table.outputs[row] for row in rows], classes) for table in (candidate, other))
    differ = np.array([candidate.outputs[row] != other.outputs[row] for row in rows])
    documents = None
    if candidate.clusters is None:
        first, counts = _distinct((truth * (num_classes + 1) + ours) * (num_classes + 1) + theirs)
        sums = _summing(truth[first], answers=(ours[first], theirs[first]), num_classes=num_classes)
        num_differing = int(differ.sum())
    else:
        documents = documents_of([candidate.clusters[row] for row in rows], num_rows=len(truth))
        counts, each = np.ones(documents.num, dtype=np.int64), np.arange(len(truth))
        members = csr_array((np.ones_like(each), (each, documents.codes)), shape=(len(truth), documents.num))
        sums = _summing(truth, answers=(ours, theirs), num_classes=num_classes) @ members
        num_differing = len(np.unique(documents.codes[differ]))

    def gains_of(weights: IntArray) -> FloatArray:
        totals = (sums @ weights.T).reshape(5, num_classes, len(weights))
        support, our_answers, our_right, their_answers, their_right = totals
        mine = mean_f1(support, answered=our_answers, right=our_right)
        return mine - mean_f1(support, answered=their_answers, right=their_right)

    # NumPy never changes the numbers of a RandomState, so `verify` draws the same ones.
    generator = np.random.RandomState(BOOTSTRAP_SEED)
    num_rows = int(counts.sum())
    chunk = max(1, CHUNK_ELEMENTS // len(counts))
    sizes = [min(chunk, NUM_RESAMPLES - start) for start in range(0, NUM_RESAMPLES, chunk)]
    resampled = np.concatenate([gains_of(generator.multinomial(num_rows, counts / num_rows, size)) for size in sizes])
    return ResampledGain(float(gains_of(counts[None, :])[0]), resampled, documents, len(truth), num_differing)


def macro_f1_contributions(table: Predictions) -> FloatArray:
    """Return a score per row [N] whose mean is macro-F1, and whose spread is that of macro-F1 to first order.

    These are the values of the influence function: what a row adds to the F1 of its label's and its output's class.
    """
    classes = {label: code for code, label in enumerate(sorted(set(table.labels)))}
    truth, answers = class_codes(table.labels, classes), class_codes(table.outputs, classes)
    num_classes, num_rows = len(classes), len(truth)
    support = np.bincount(truth, minlength=num_classes + 1)
    sizes = np.maximum(support + np.bincount(answers, minlength=num_classes + 1), 1)
    f1 = 2 * np.bincount(truth[truth == answers], minlength=num_classes + 1) / sizes
    f1[num_classes] = 0.0  # outputs of unknown classes
    own = 2.0 * (truth == answers) / sizes[truth] - f1[truth] / sizes[truth] - f1[answers] / sizes[answers]
    return np.asarray(f1[:num_classes].mean() + num_rows / num_classes * own, dtype=np.float64)


def mean_effect(candidate_scores: FloatArray, *, other_scores: FloatArray, alpha: float) -> Effect:
    """Return the gain in the mean per-row score [N] of independent rows.

    The interval is that of `likelihood_interval`, the p value that of 10,000 sign flips. Raises ValueError for scores
    that are not finite or not paired, and for fewer than two rows.
    """
    ours, theirs = np.asarray(candidate_scores, dtype=np.float64), np.asarray(other_scores, dtype=np.float64)
    if ours.ndim != 1 or ours.shape != theirs.shape or not np.isfinite([ours, theirs]).all():
        raise ValueError(f"scores have shapes {ours.shape} and {theirs.shape}; give two finite scores per row")
    differences = ours - theirs
    n = len(differences)
    if n < 2:
        raise ValueError(f"{n} rows given; an interval needs at least 2 rows")
    return Effect(
        gain=float(np.mean(differences)),
        interval=likelihood_interval(differences, alpha=alpha),
        p_value=_sign_flip(differences),
        standard_error=float(np.std(differences, ddof=1)) / math.sqrt(n),
    )


def likelihood_interval(
    sums: FloatArray, *, alpha: float, sizes: FloatArray | None = None, degrees_of_freedom: float | None = None
) -> tuple[float, float]:
    """Return the empirical-likelihood interval of the mean difference of at least two independent units [N].

    Units are rows, or documents with the sums of their differences and their numbers of rows, `sizes`. Differences are
    in [-1, 1], or up to the largest one if that is larger. The distributions compared with the observed one may also
    have weight at both ends of this range, because few units seldom contain its rare large losses or gains. For many
    units with a common spread, the interval is Student's t interval. Owen, Empirical Likelihood (2001), with his
    calibration by F(1, N - 1).
    """
    sizes = np.ones_like(sums) if sizes is None else sizes
    reach = max(1.0, float(np.abs(sums / sizes).max()))
    freedom = len(sums) - 1 if degrees_of_freedom is None else degrees_of_freedom
    threshold = float(t_isf(alpha / 2, freedom)) ** 2 / 2
    low, high = (_lowest_mean(sign * sums, sizes=sizes, reach=reach, threshold=threshold) for sign in (1, -1))
    return low, -high


def _lowest_mean(sums: FloatArray, *, sizes: FloatArray, reach: float, threshold: float) -> float:
    """Return the lowest mean with a log-likelihood ratio of at most `threshold`; weight at -reach is allowed."""
    mean, least = float(sums.sum() / sizes.sum()), -reach * (1 - ROUNDING)

    def excess(mean: float) -> float:
        return _log_likelihood_ratio((sums - mean * sizes) / sizes.mean(), furthest=mean + reach) - threshold

    if mean <= least or excess(least) <= 0:
        return -reach
    return float(brentq(excess, least, mean))


def _log_likelihood_ratio(distances: FloatArray, *, furthest: float) -> float:
    """Return the log-likelihood ratio of the observed distribution and the best one with a distance of 0 on average.

    The observed distances [N] have a mean of 0 or more; the best distribution may have weight at -`furthest`. By
    duality, the ratio is the maximum over tilts t of the sum of log(1 + t distance), with no term below 0.
    """
    steepest = (1 - ROUNDING) / max(furthest, -float(distances.min()))

    def slope(tilt: float) -> float:
        return float(np.sum(distances / (1 + tilt * distances)))

    if slope(0.0) <= 0:
        return 0.0
    tilt = steepest if slope(steepest) >= 0 else float(brentq(slope, 0.0, steepest))
    return float(np.sum(np.log1p(tilt * distances)))


def two_sided(gains: FloatArray) -> float:
    """Return twice the smaller of the shares of gains <= 0 and >= 0, with 1 added to count and total; at most 1."""
    under, over = int(np.sum(gains <= ROUNDING)), int(np.sum(gains >= -ROUNDING))
    return min(1.0, 2 * (min(under, over) + 1) / (len(gains) + 1))


def _sign_flip(units: FloatArray) -> float:
    """Return the sign-flip p value: the share of random sign vectors with a sum at least as far from 0.

    1 is added to count and total. Few random sign vectors give no small p value, so the bound of Hoeffding,
    2 exp(-sum^2 / (2 sum of squares)), is returned if it is smaller. It holds for any differences.
    """
    sizes = np.abs(units[units != 0])  # signs do not affect differences of 0
    total, seen = float(sizes.sum()), abs(float(units.sum()))
    generator, as_far = np.random.default_rng(SIGN_SEED), 0
    num_bytes = -(-len(sizes) // 8)
    chunk = max(1, CHUNK_ELEMENTS // max(len(sizes), 1))
    for start in range(0, NUM_RESAMPLES, chunk):
        num = min(chunk, NUM_RESAMPLES - start)
        random = np.frombuffer(generator.bytes(num * num_bytes), dtype=np.uint8).reshape(num, num_bytes)
        positive = np.unpackbits(random, axis=1, count=len(sizes)).astype(np.float64) @ sizes
        as_far += int(np.sum(np.abs(2 * positive - total) >= seen - ROUNDING * total))
    bound = 2 * math.exp(-(seen**2) / (2 * float(sizes @ sizes))) if len(sizes) else 1.0
    return min((as_far + 1) / (NUM_RESAMPLES + 1), bound)


def _distinct(values: NDArray[np.generic]) -> tuple[IntArray, IntArray]:
    """Return the first position and the count of each distinct value, in order of first appearance."""
    _, first, counts = np.unique(values, return_index=True, return_counts=True)
    # This order does not depend on which model comes first, so swapping the models only changes the effect's sign.
    order = np.argsort(first)
    return first[order], counts[order]


def _summing(truth: IntArray, *, answers: tuple[IntArray, IntArray], num_classes: int) -> csr_array:
    """Return a 0/1 matrix [5 L, cells] that sums cells by class.

    The five blocks count labels, then all answers and right answers of each model.
    """
    blocks = [truth]
    for codes in answers:
        blocks += [codes, np.where(codes == truth, truth, num_classes)]
    cells = np.tile(np.arange(len(truth)), len(blocks))
    rows = np.concatenate([block + number * num_classes for number, block in enumerate(blocks)])
    known = np.concatenate(blocks) < num_classes
    ones = np.ones(int(known.sum()), dtype=np.int64)
    return csr_array((ones, (rows[known], cells[known])), shape=(len(blocks) * num_classes, len(truth)))
