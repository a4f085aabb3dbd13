"""The calibration gate: expected calibration error (ECE), after a temperature that is fitted on validation.

An external endpoint has no temperature.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Gate, at_most, gate
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics.debiased import DebiasedSum, debiased_difference, debiased_sum
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS, Documents, documents_of
from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.registry.versions import ENDPOINT_KINDS

FloatArray = NDArray[np.float64]

NUM_BINS = 15
NUM_DRAWS = 1_000
SEED = 2017
TEMPERATURES = (0.01, 100.0)
ECE = "debiased ECE"  # name of the bounded estimate
INDEPENDENT = 1e-9  # share of the variance of a bin that is added to it, so that its covariance has a Cholesky factor
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
    """Test that the candidate's ECE is small and not much larger than the incumbent's, after temperature scaling.

    A candidate without confidences cannot be assessed. If only the incumbent has none, which is possible for an
    external endpoint, only `max_ece` applies. Both ECEs are debiased (`statistics.debiased`): a perfectly calibrated
    model has a measured ECE of about 0.08 on 200 rows. The errors of the bins of both models are drawn together, from
    the covariance over documents if rows share documents. Raises VerdictRefused if the rows differ or a confidence is
    invalid.
    """
    align(candidate, incumbent)
    n = len(candidate)
    if not has_confidences(candidate):
        return gate("calibration", (), note=f"{candidate.model} returns no confidences")
    if not has_confidences(incumbent):
        return _without_incumbent(candidate, incumbent=incumbent.model, limits=limits, alpha=alpha)
    measured = [_ece_of(*_excess_of(table), NUM_BINS) for table in (candidate, incumbent)]
    documents = documents_of(candidate.clusters, num_rows=n)
    if documents.num < LEAST_DOCUMENTS:
        return gate("calibration", (), note=_too_few(documents))
    ours, theirs = _debiased((candidate, incumbent), documents=documents, alpha=alpha)
    increase, of_increase = debiased_difference(ours, theirs)
    bounds = (
        at_most(limits.max_ece, what=ECE, estimate=ours.estimate, interval=ours.interval, n=n),
        at_most(
            limits.max_increase,
            what=f"difference in {ECE} (candidate minus incumbent)",
            estimate=increase,
            interval=of_increase,
            n=n,
        ),
    )
    note = (
        f"ECE in {NUM_BINS} bins of equal width: candidate {ours.estimate:.4f}, incumbent {theirs.estimate:.4f}; "
        f"before the correction for chance {measured[0]:.4f} and {measured[1]:.4f}{_scaling(candidate, incumbent)}"
    )
    return gate("calibration", bounds, note=note)


def has_confidences(table: Predictions) -> bool:
    """Return False for a model without confidences. They are NaN, for all rows or, of a hybrid, for those of a part."""
    missing = np.isnan(table.calibrated)
    return not (len(table) and (missing.all() or (table.model == "hybrid" and missing.any())))


def _without_incumbent(candidate: Predictions, *, incumbent: str, limits: CalibrationGateConfig, alpha: float) -> Gate:
    """Return the gate without a comparison, for an incumbent without confidences."""
    documents, n = documents_of(candidate.clusters, num_rows=len(candidate)), len(candidate)
    measured = _ece_of(*_excess_of(candidate), NUM_BINS)
    if documents.num < LEAST_DOCUMENTS:
        return gate("calibration", (), note=_too_few(documents))
    [ours] = _debiased((candidate,), documents=documents, alpha=alpha)
    bound = at_most(limits.max_ece, what=ECE, estimate=ours.estimate, interval=ours.interval, n=n)
    note = (
        f"ECE in {NUM_BINS} bins of equal width: candidate {ours.estimate:.4f}, before the correction for chance "
        f"{measured:.4f}; the incumbent, {incumbent}, returns no confidences, so max_increase does not apply"
        f"{_scaling(candidate)}"
    )
    return gate("calibration", (bound,), note=note)


def _scaling(*tables: Predictions) -> str:
    """Return the end of a note if one of the models is an endpoint."""
    if not any(table.model in ENDPOINT_KINDS for table in tables):
        return ""
    return "; confidences of an endpoint are not scaled by a temperature, those of other models are"


def _too_few(documents: Documents) -> str:
    return f"{documents.num} independent rows or documents have no interval; at least {LEAST_DOCUMENTS} are needed"


def _debiased(tables: Sequence[Predictions], *, documents: Documents, alpha: float) -> tuple[DebiasedSum, ...]:
    """Return the debiased ECE of each model on the same rows, from draws of the joint error of their bins."""
    n, freedom = len(documents.codes), documents.degrees_of_freedom
    # An error that occurs on none of n rows may have this rate, and a bin of few rows may show less variance than the
    # bin of a calibrated model has.
    unseen = min(unseen_rate(freedom + 1, alpha=alpha), 0.5)
    sums, least, num_bins = [], [], []
    for table in tables:
        excess, bins = _excess_of(table)
        confidence = np.clip(table.calibrated, unseen, 1 - unseen)
        members = [bins == index for index in np.unique(bins)]
        sums += [documents.sums(np.where(rows, excess, 0.0)) for rows in members]
        least += [float(np.sum((confidence * (1 - confidence))[rows])) / n**2 for rows in members]
        num_bins.append(len(members))
    by_document = np.stack(sums, axis=1)
    covariance = documents.mean_covariance(by_document)
    covariance += np.diag(np.maximum(np.array(least) - np.diag(covariance), 0.0))
    # Cholesky's factor is unique, unlike eigenvectors; models with the same answers have a singular covariance.
    factor = np.linalg.cholesky(covariance + INDEPENDENT * np.diag(np.diag(covariance)))
    generator = np.random.default_rng(SEED)
    normal = generator.standard_normal((NUM_DRAWS, len(factor))) @ factor.T
    noise = normal * np.sqrt(freedom / generator.chisquare(freedom, size=(NUM_DRAWS, 1)))  # Student's t
    means = by_document.sum(axis=0) / n
    ends = np.cumsum([0, *num_bins])
    return tuple(
        debiased_sum(means[first:end], noise=noise[:, first:end], unseen=unseen, alpha=alpha)
        for first, end in pairwise(ends)
    )


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
