"""The calibration gate: expected calibration error (ECE) after a temperature that is fitted on validation."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Bound, Gate, at_most, gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics import bootstrap
from tailorbird.evaluation.statistics.bootstrap import at_least_unseen

FloatArray = NDArray[np.float64]

NUM_BINS = 15
NUM_RESAMPLES = 2_000
SEED = 2017
TEMPERATURES = (0.01, 100.0)
SLACK = 1e-6  # an fp32 softmax may exceed 1 by this much


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the temperature T that maximises the likelihood of the labels [N] under softmax(logits [N, L] / T).

    T is limited to `TEMPERATURES`, because it would go to 0 if every row is right. Raises ValueError if logits and
    labels do not match. Guo et al., On calibration of modern neural networks, ICML 2017.
    """
    values, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if values.ndim != 2 or truth.shape != values.shape[:1] or not truth.size:
        raise ValueError(
            f"logits have shape {values.shape} and labels {truth.shape}; give [N, L] and [N] with at least one row"
        )
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite; the model has diverged")
    if truth.min() < 0 or truth.max() >= values.shape[1]:
        raise ValueError(f"labels range from {truth.min()} to {truth.max()}; allowed: 0 to {values.shape[1] - 1}")
    at_label = values[np.arange(len(truth)), truth]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(np.mean(logsumexp(values * inverse, axis=1) - at_label * inverse))

    # The loss is convex in 1 / T, so it has a single minimum in log T.
    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def ece(correct: FloatArray, confidence: FloatArray, num_bins: int = NUM_BINS) -> float:
    """Return the expected calibration error: the row-weighted mean over bins of |accuracy - mean confidence|.

    The bins have equal width. `correct` [N] is 0 or 1, `confidence` [N] is in [0, 1]. Naeini, Cooper and Hauskrecht,
    AAAI 2015.
    """
    return _ece_of(*_excess(correct, confidence, num_bins), num_bins)


def calibration_gate(
    candidate: Predictions, *, incumbent: Predictions, limits: CalibrationGateConfig, alpha: float
) -> Gate:
    """Test that the candidate's ECE after temperature scaling is small and not much larger than the incumbent's.

    Both intervals come from the same 2,000 paired resamples of the rows. The interval of the candidate's ECE extends
    down by at least the increase that chance can cause (`chance_in_ece`). Raises VerdictRefused if the rows differ or a
    confidence is invalid.
    """
    align(candidate, incumbent)
    n = len(candidate)
    parts = [_excess_of(predictions) for predictions in (candidate, incumbent)]
    ours, theirs = (_ece_of(excess, bins, NUM_BINS) for excess, bins in parts)
    drawn = np.array(
        [
            [_ece_of(excess * weights, bins, NUM_BINS) for excess, bins in parts]
            for weights in bootstrap.resampled(n, num_resamples=NUM_RESAMPLES, seed=SEED)
        ]
    )
    low, high = _reflected(drawn[:, 0], estimate=ours, alpha=alpha)
    low = min(low, ours - chance_in_ece(candidate, true_ece=limits.max_ece, alpha=alpha))
    change = _reflected(drawn[:, 0] - drawn[:, 1], estimate=ours - theirs, alpha=alpha)

    def bound(what: str, *, estimate: float, interval: tuple[float, float], limit: float) -> Bound:
        wide = at_least_unseen(interval, estimate=estimate, n=n, alpha=alpha)
        return at_most(limit, what=what, estimate=estimate, interval=wide, n=n)

    what = "ECE after temperature scaling"
    bounds = (
        bound(what, estimate=ours, interval=(low, high), limit=limits.max_ece),
        bound(
            f"difference in {what} (candidate minus incumbent)",
            estimate=ours - theirs,
            interval=change,
            limit=limits.max_increase,
        ),
    )
    note = f"ECE in {NUM_BINS} bins of equal width: candidate {ours:.4f}, incumbent {theirs:.4f}"
    return gate("calibration", bounds, note=note)


def chance_in_ece(predictions: Predictions, *, true_ece: float, alpha: float) -> float:
    """Return the upper limit, at level alpha / 2, of the increase of the measured ECE over the true ECE by chance.

    Simulates 2,000 tests. In each, a row is right with the probability of its confidence minus the true ECE, or plus
    the true ECE in bins that are observed to be underconfident. On 200 rows, a true ECE of 0.05 is measured as 0.08
    half of the time, and a bootstrap interval without this correction is above 0.05 in 7 of 100 tests.
    """
    excess, bins = _excess_of(predictions)
    side = np.where(np.bincount(bins, weights=excess, minlength=NUM_BINS) < 0, 1.0, -1.0)[bins]
    right = np.clip(predictions.calibrated + side * true_ece, 0.0, 1.0)
    generator = np.random.default_rng(SEED)
    seen = [
        _ece_of(predictions.calibrated - (generator.random(len(right)) < right), bins, NUM_BINS)
        for _ in range(NUM_RESAMPLES)
    ]
    return max(0.0, float(np.quantile(seen, 1 - alpha / 2)) - true_ece)


def _reflected(resampled: FloatArray, *, estimate: float, alpha: float) -> tuple[float, float]:
    """Return the basic bootstrap interval, at least half the resamples' width on both sides of the estimate."""
    # Chance increases an ECE, and resampling increases it again: the percentile interval of a perfectly calibrated
    # model on 200 rows is entirely above 0.05. Reflection removes this bias to first order. Without the minimum width,
    # a true ECE of 0.05 passed a limit of 0.05 in 12 of 100 tests of 1,000 rows.
    low, high = (float(end) for end in np.quantile(resampled, [alpha / 2, 1 - alpha / 2]))
    half = (high - low) / 2
    return min(2 * estimate - high, estimate - half), max(2 * estimate - low, estimate + half)


def _excess_of(predictions: Predictions) -> tuple[FloatArray, NDArray[np.int64]]:
    right = np.array([a == b for a, b in zip(predictions.outputs, predictions.labels, strict=True)], dtype=np.float64)
    try:
        return _excess(right, predictions.calibrated, NUM_BINS)
    except ValueError as error:
        raise VerdictRefused(f"{predictions.model}: {error}") from None


def _excess(correct: FloatArray, confidence: FloatArray, num_bins: int) -> tuple[FloatArray, NDArray[np.int64]]:
    """Return confidence minus correctness [N] and the bin of each row [N]."""
    if correct.shape != confidence.shape or not correct.size:
        raise ValueError(
            f"answers have shape {correct.shape} and confidences {confidence.shape}; give one of each per row, for at "
            "least one row"
        )
    bad = np.flatnonzero(~((confidence >= 0) & (confidence <= 1 + SLACK)))
    if bad.size:
        raise ValueError(f"the confidence at position {bad[0]} is {confidence[bad[0]]}; allowed: 0 to 1")
    bins = np.minimum((confidence * num_bins).astype(np.int64), num_bins - 1)
    return np.asarray(confidence - correct, dtype=np.float64), bins


def _ece_of(excess: FloatArray, bins: NDArray[np.int64], num_bins: int) -> float:
    # The weight of a bin times its gap equals the absolute sum of the excess of its rows, divided by all rows.
    return float(np.abs(np.bincount(bins, weights=excess, minlength=num_bins)).sum() / len(excess))
