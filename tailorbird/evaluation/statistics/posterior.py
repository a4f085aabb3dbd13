"""The posterior of a gain by the Bayesian bootstrap: shown with a verdict, it decides nothing."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.documents import documents_of

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

NUM_DRAWS = 2_000
SEED = 1981
CHUNK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class Posterior:
    """The posterior of a gain, with the losses that either choice is expected to cause."""

    above_minimum: float  # probability that the gain is above the minimum gain
    loss_if_replaced: float  # expected loss of serving the candidate: mean of -gain where the gain is below 0
    loss_if_kept: float  # expected loss of keeping the other model: mean of the gain where it is above 0


def posterior_of(candidate: Predictions, *, other: Predictions, metric: str, minimum_gain: float) -> Posterior:
    """Return the posterior of the candidate's gain in a metric.

    Each draw weights rows, or documents if rows share documents, by a flat Dirichlet distribution. Rubin, The Annals of
    Statistics 9:130-134 (1981).
    """
    if metric == "macro_f1":
        gains = _macro_f1_gains(candidate, other=other)
    else:
        gains = _mean_gains(candidate.per_row(metric) - other.per_row(metric), clusters=candidate.clusters)
    return Posterior(
        above_minimum=float(np.mean(gains > minimum_gain)),
        loss_if_replaced=float(np.mean(np.maximum(-gains, 0.0))),
        loss_if_kept=float(np.mean(np.maximum(gains, 0.0))),
    )


def _mean_gains(differences: FloatArray, *, clusters: Sequence[str] | None) -> FloatArray:
    documents = documents_of(clusters, num_rows=len(differences))
    sums = np.stack([documents.sums(differences), documents.sizes], axis=1)
    units, counts = np.unique(sums, axis=0, return_counts=True)
    totals = np.concatenate([weights @ units for weights in _weights(counts)])
    return np.asarray(totals[:, 0] / totals[:, 1], dtype=np.float64)


def _macro_f1_gains(candidate: Predictions, *, other: Predictions) -> FloatArray:
    codes = {label: code for code, label in enumerate(sorted(set(candidate.labels)))}
    columns = [[codes.get(value, -1) for value in row] for row in (candidate.labels, candidate.outputs, other.outputs)]
    cells, members, counts = np.unique(np.array(columns), axis=1, return_inverse=True, return_counts=True)
    truth, ours, theirs = cells
    gains = []
    for weights in _cell_weights(members, counts=counts, clusters=candidate.clusters):
        total = np.zeros(len(weights))
        for code in range(len(codes)):
            support = weights[:, truth == code].sum(axis=1)
            for sign, answers in ((1, ours), (-1, theirs)):
                right = weights[:, (truth == code) & (answers == code)].sum(axis=1)
                total += sign * 2 * right / (support + weights[:, answers == code].sum(axis=1))
        gains.append(total / len(codes))
    return np.concatenate(gains)


def _cell_weights(members: IntArray, *, counts: IntArray, clusters: Sequence[str] | None) -> Iterator[FloatArray]:
    """Yield weights [chunk, cells] of the cells that rows belong to."""
    if clusters is None:
        yield from _weights(counts)
        return
    documents = documents_of(clusters, num_rows=len(members))
    ones, shape = np.ones(len(members)), (documents.num, len(counts))
    cells_of_documents = csr_array((ones, (documents.codes, members)), shape=shape)
    for weights in _weights(np.ones(documents.num, dtype=np.int64)):
        yield weights @ cells_of_documents


def _weights(counts: IntArray) -> Iterator[FloatArray]:
    """Yield weights [chunk, cells] of cells with these counts, not normalised: flat weights add up to gamma draws."""
    generator = np.random.default_rng(SEED)
    chunk = max(1, CHUNK_ELEMENTS // len(counts))
    for start in range(0, NUM_DRAWS, chunk):
        yield generator.standard_gamma(counts.astype(np.float64), size=(min(chunk, NUM_DRAWS - start), len(counts)))
