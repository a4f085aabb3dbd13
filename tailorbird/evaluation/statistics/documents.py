"""Effects over rows that share documents: a cluster-robust t interval (CR2, Satterthwaite's degrees
of freedom).

For a mean over N rows in documents of n_g rows, with shares h_g = n_g / N, CR2 has a closed form:
the variance is the sum over documents of (sum of the document's residuals / N)^2 / (1 - h_g). Bell
and McCaffrey, Survey Methodology 28:169-181 (2002); Pustejovsky and Tipton, Journal of Business &
Economic Statistics 36:672-683 (2018).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.statistics.distributions import t_isf, t_sf
from tailorbird.evaluation.statistics.effect import Effect, unseen_rate, with_least_p

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

LEAST_DOCUMENTS = 6
"""Fewer documents give no interval: with five, even equal signs have a two-sided p value of
0.0625."""
LEAST_P = 1e-300


@dataclass(frozen=True)
class Documents:
    """The assignment of rows to documents; a row that shares its document with no other row is a
    document."""

    codes: IntArray  # [N] document of each row
    sizes: FloatArray  # [G] rows of each document

    @property
    def num(self) -> int:
        return len(self.sizes)

    @property
    def shares(self) -> FloatArray:
        """Share of the rows in each document [G]."""
        return np.asarray(self.sizes / self.sizes.sum(), dtype=np.float64)

    @property
    def degrees_of_freedom(self) -> float:
        """Satterthwaite's degrees of freedom of the CR2 variance: G - 1 for documents of equal
        size, fewer otherwise.

        They equal (tr M)^2 / tr(M^2), where M is the matrix of the variance as a quadratic form of
        independent rows.
        """
        shares = self.shares
        across = shares**2 / (1 - shares)
        return float(1 / (np.sum(shares**2) + across.sum() ** 2 - np.sum(across**2)))

    def sums(self, values: FloatArray) -> FloatArray:
        """Return the sums [G] of per-row values [N] by document."""
        return np.asarray(
            np.bincount(self.codes, weights=values, minlength=self.num), dtype=np.float64
        )

    def mean_covariance(self, sums: FloatArray) -> FloatArray:
        """Return the CR2 covariance [K, K] of the means over rows of K values, from their sums [G,
        K] by document."""
        num_rows = self.sizes.sum()
        residuals = sums - np.outer(self.sizes, sums.sum(axis=0) / num_rows)
        scaled = residuals / (num_rows * np.sqrt(1 - self.shares))[:, None]
        return np.asarray(scaled.T @ scaled, dtype=np.float64)


def documents_of(clusters: Sequence[str] | None, *, num_rows: int) -> Documents:
    """Return the documents from a name per row; None means that rows are independent."""
    if clusters is None:
        return Documents(np.arange(num_rows), np.ones(num_rows))
    if len(clusters) != num_rows:
        raise ValueError(f"{len(clusters)} clusters for {num_rows} rows; give one per row")
    index = {name: code for code, name in enumerate(dict.fromkeys(clusters))}
    codes = np.fromiter((index[name] for name in clusters), dtype=np.int64, count=num_rows)
    return Documents(codes, np.bincount(codes).astype(np.float64))


def few_documents(num_documents: int, *, num_rows: int) -> str | None:
    """Return a sentence if test rows come from too few documents for an interval."""
    if num_documents >= LEAST_DOCUMENTS:
        return None
    units = "document or text" if num_documents == 1 else "documents or texts"
    return (
        f"the {num_rows:,} test rows come from {num_documents:,} {units}, but an interval needs at "
        f"least {LEAST_DOCUMENTS}; add test rows from further documents"
    )


def document_effect(
    differences: FloatArray,
    *,
    documents: Documents,
    alpha: float,
    is_different: NDArray[np.bool_] | None = None,
) -> Effect:
    """Return the mean of per-row differences [N] of two models with its cluster-robust t interval
    and p value.

    `is_different` [N] tells where the models differ, by default where the difference is not 0.
    Fewer than `LEAST_DOCUMENTS` documents have the interval (-1, 1) and p = 1. If no document
    differs, the interval is the unseen rate. The standard error is at least that of a p value of
    2^(1 - documents), because documents that gain exactly the same amount, with a standard error of
    0, do not prove more.
    """
    gain = float(np.mean(differences))
    if documents.num < LEAST_DOCUMENTS:
        return Effect(
            gain=gain,
            interval=(min(gain, -1.0), max(gain, 1.0)),
            p_value=1.0,
            standard_error=1.0,
            degrees_of_freedom=max(documents.num - 1.0, 1.0),
        )
    freedom = documents.degrees_of_freedom
    is_different = differences != 0 if is_different is None else is_different
    num_differing = len(np.unique(documents.codes[is_different]))
    if not num_differing:
        unseen = unseen_rate(freedom + 1, alpha=alpha)
        return Effect(
            gain=gain,
            interval=(-unseen, unseen),
            p_value=1.0,
            standard_error=0.0,
            degrees_of_freedom=freedom,
        )
    error = float(np.sqrt(documents.mean_covariance(documents.sums(differences)[:, None])[0, 0]))
    least = abs(gain) / float(t_isf(max(2.0**-documents.num, LEAST_P), freedom))
    error = max(error, least)
    half = float(t_isf(alpha / 2, freedom)) * error
    # The interval and the p value come from the same t statistic, so that they always agree.
    interval = (max(gain - half, min(gain, -1.0)), min(gain + half, max(gain, 1.0)))
    p_value = 2 * float(t_sf(abs(gain) / error, freedom)) if gain else 1.0
    effect = Effect(
        gain=gain,
        interval=interval,
        p_value=p_value,
        standard_error=error,
        degrees_of_freedom=freedom,
    )
    return with_least_p(effect, num_differing=num_differing, alpha=alpha)
