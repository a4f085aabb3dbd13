"""The calibration gate: expected calibration error (ECE) against the incumbent's, after
temperatures that are fitted on validation.

An external endpoint has no temperature.
"""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from tailorbird.config.evaluation import CalibrationGateConfig
from tailorbird.evaluation.gates.base import Estimate, Gate, at_most, gate, no_loss
from tailorbird.evaluation.predictions import Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics.debiased import debiased_sum
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS, Documents, documents_of
from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.registry.kinds import spec_of

FloatArray = NDArray[np.float64]

NUM_BINS = 15
NUM_DRAWS = 1_000
SEED = 2017
TEMPERATURES = (0.01, 100.0)
# share of the variance of a bin that is added to it, so that its covariance has a Cholesky factor
INDEPENDENT = 1e-9
SLACK = 1e-6  # an fp32 softmax may exceed 1 by this much


def fit_temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Return the temperature T that maximises the likelihood of the labels [N] under softmax(logits
    [N, L] / T).

    T is limited to `TEMPERATURES`, because it would go to 0 if every row is right. Raises
    ValueError if logits are not finite. Guo et al., On calibration of modern neural networks, ICML
    2017.
    """
    values = np.asarray(logits, dtype=np.float64)
    truth = np.asarray(labels)
    if not np.isfinite(values).all():
        raise ValueError("logits must be finite; the model has diverged")
    at_label = values[np.arange(len(truth)), truth]

    def loss(log_temperature: float) -> float:
        inverse = np.exp(-log_temperature)
        return float(np.mean(logsumexp(values * inverse, axis=1) - at_label * inverse))

    # The loss is convex in 1 / T, so it has a single minimum in log T.
    low, high = np.log(TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def bins_of(confidence: FloatArray) -> NDArray[np.int64]:
    """Return the bin of each confidence [N], of `NUM_BINS` bins of equal width."""
    return np.minimum((confidence * NUM_BINS).astype(np.int64), NUM_BINS - 1)


def calibration_gate(
    candidate: Predictions, *, incumbent: Predictions, limits: CalibrationGateConfig, alpha: float
) -> Gate:
    """Test that the candidate's ECE is not above the incumbent's by more than a margin or, with
    `max_ece`, that it is below this limit.

    A comparison with a model without confidences cannot be assessed. The interval of the increase
    comes from the intervals of both ECEs (MOVER, as in Newcombe's method: Zou and Donner,
    Statistics in Medicine 27:1693-1702 (2008)); it is too wide if the errors of both are
    correlated. Raises VerdictRefused if a confidence is invalid.
    """
    align(candidate, incumbent)
    compared = (candidate,) if limits.max_ece is not None else (candidate, incumbent)
    for table in compared:
        missing = _no_interval(table)
        if missing:
            return gate("calibration", (), note=missing)
    note = f"expected calibration error in {NUM_BINS} bins of equal width"
    if any(spec_of(table.model).calls_endpoint for table in compared):
        note += "; confidences of an endpoint are not scaled by a temperature"
    ece = calibration_error(candidate, alpha=alpha)
    if limits.max_ece is not None:
        bound = at_most(
            limits.max_ece,
            what="debiased ECE",
            estimate=ece.value,
            interval=ece.interval,
            n=ece.n,
        )
        return gate("calibration", (bound,), note=note)
    reference = calibration_error(incumbent, alpha=alpha)
    bound = no_loss(
        limits.margin,
        what="debiased ECE above the incumbent's",
        loss=_difference(ece, reference),
    )
    note += f": {100 * ece.value:.1f} points, incumbent {100 * reference.value:.1f}"
    return gate("calibration", (replace(bound, detects=None),), note=note)


def calibration_error(table: Predictions, *, alpha: float) -> Estimate:
    """Return the expected calibration error (ECE) of confidences, with its interval.

    The ECE is the row-weighted mean over bins of |accuracy - mean confidence| (Naeini, Cooper and
    Hauskrecht, AAAI 2015). It is debiased (`statistics.debiased`): a perfectly calibrated model has
    a measured ECE of about 0.08 on 200 rows. The errors of the bins are drawn from the covariance
    over documents if rows share documents. Raises VerdictRefused if a confidence is invalid.
    """
    bad = np.flatnonzero(~((table.calibrated >= 0) & (table.calibrated <= 1 + SLACK)))
    if bad.size:
        raise VerdictRefused(
            f"{table.model}: the confidence at position {bad[0]} is {table.calibrated[bad[0]]}; "
            "allowed: 0 to 1"
        )
    documents = documents_of(table.clusters, num_rows=len(table))
    value, interval = _debiased(table, documents=documents, alpha=alpha)
    return Estimate(value=value, interval=interval, n=len(table), alpha=alpha)


def _no_interval(table: Predictions) -> str:
    """Return why the ECE of a model has no interval; empty if it has one."""
    if not has_confidences(table):
        return f"{table.model} returns no confidences"
    documents = documents_of(table.clusters, num_rows=len(table))
    if documents.num < LEAST_DOCUMENTS:
        return (
            f"{documents.num} independent rows or documents have no interval; at least "
            f"{LEAST_DOCUMENTS} are needed"
        )
    return ""


def _difference(first: Estimate, second: Estimate) -> Estimate:
    """Return the first estimate minus the second, with an interval from theirs."""
    value = first.value - second.value
    below = math.hypot(first.value - first.interval[0], second.interval[1] - second.value)
    above = math.hypot(first.interval[1] - first.value, second.value - second.interval[0])
    return replace(first, value=value, interval=(value - below, value + above))


def has_confidences(table: Predictions) -> bool:
    """Return False for a model without confidences. They are NaN, for all rows or, of a hybrid, for
    those of a part."""
    missing = np.isnan(table.calibrated)
    return not (
        len(table) and (missing.all() or (spec_of(table.model).base == "parts" and missing.any()))
    )


def _debiased(
    table: Predictions, *, documents: Documents, alpha: float
) -> tuple[float, tuple[float, float]]:
    """Return the debiased ECE with its interval, from draws of the joint error of its bins."""
    n = len(table)
    freedom = documents.degrees_of_freedom
    # An error that occurs on none of n rows may have this rate, and a bin of few rows may show less
    # variance than the bin of a calibrated model has.
    unseen = min(unseen_rate(freedom + 1, alpha=alpha), 0.5)
    excess = table.calibrated - table.scores
    bins = bins_of(table.calibrated)
    confidence = np.clip(table.calibrated, unseen, 1 - unseen)
    members = np.stack([bins == index for index in np.unique(bins)])
    by_document = np.stack(
        [documents.sums(np.where(rows, excess, 0.0)) for rows in members], axis=1
    )
    covariance = documents.mean_covariance(by_document)
    least = members @ (confidence * (1 - confidence)) / n**2
    covariance += np.diag(np.maximum(least - np.diag(covariance), 0.0))
    # Cholesky's factor is unique, unlike eigenvectors.
    factor = np.linalg.cholesky(covariance + INDEPENDENT * np.diag(np.diag(covariance)))
    generator = np.random.default_rng(SEED)
    normal = generator.standard_normal((NUM_DRAWS, len(factor))) @ factor.T
    noise = normal * np.sqrt(
        freedom / generator.chisquare(freedom, size=(NUM_DRAWS, 1))
    )  # Student's t
    return debiased_sum(by_document.sum(axis=0) / n, noise=noise, unseen=unseen, alpha=alpha)
