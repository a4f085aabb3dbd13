"""Simulated tests at a hypothetical true gain, drawn from the rows of a run.

Rows with scores of 0 or 1 that are independent are resampled: distinct rows from a multinomial, exponentially tilted to
the true gain. Other rows are represented by the joint normal distribution of their means, with the covariance over rows
or documents. In both cases, groups have their shrunken changes, moved by the same amount to give the true gain.
"""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import logsumexp

from tailorbird.evaluation.statistics.distributions import t_isf, t_sf
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS, Documents
from tailorbird.evaluation.statistics.draws import multinomial
from tailorbird.evaluation.statistics.paired import midp_values, newcombe_limits

FloatArray = NDArray[np.float64]

SEED = 1998
RIDGE = 1e-9  # keeps the tilt finite if a group cannot have its change


@dataclass(frozen=True, eq=False)
class SimulatedTests:
    """Estimates of B simulated tests: C comparisons, and the first of them in K groups."""

    num_rows: int
    gains: FloatArray  # [B, C]
    p_values: FloatArray  # [B, C]
    cells: NDArray[np.int64] | None  # [B, C, 4] of `PairedCounts`; None if the intervals are Student's t
    errors: FloatArray  # [B, C] standard errors; not read if there are cells
    freedom: FloatArray  # [C] degrees of freedom; inf for the normal distribution
    group_gains: FloatArray  # [B, K]
    group_errors: FloatArray  # [B, K]
    group_freedom: FloatArray  # [K]

    def intervals(self, alpha: float) -> tuple[FloatArray, FloatArray]:
        """Return the lower and upper ends [B, C] of the intervals at level 1 - alpha."""
        if self.cells is not None:
            return newcombe_limits(self.cells, alpha=alpha)
        half = t_isf(alpha / 2, self.freedom) * self.errors
        half = np.where(np.isfinite(self.freedom), half, np.maximum(half, self.unseen(alpha)))
        return self.gains - half, self.gains + half

    def unseen(self, alpha: float) -> FloatArray:
        """Return the rates [C] of `effect.unseen_rate`; see `paired.cautious_change`."""
        num_units = np.where(np.isfinite(self.freedom), self.freedom + 1, self.num_rows)
        return np.asarray(1 - (alpha / 2) ** (1 / num_units), dtype=np.float64)


@dataclass(frozen=True, eq=False)
class TestedRows:
    """Per-row scores of the comparisons of a test, and the groups of the rows."""

    ours: FloatArray  # [N, C] scores of the first model of each comparison; the candidate's first
    theirs: FloatArray  # [N, C] scores of the second model; the incumbent's first
    members: NDArray[np.bool_]  # [N, K] rows of each group
    group_changes: FloatArray  # [K] changes that are assumed to be true, up to a constant
    documents: Documents | None  # None if rows are independent
    _tilts: dict[float, FloatArray] = field(default_factory=dict)  # computed probabilities by true gain

    @property
    def num_units(self) -> int:
        return len(self.ours) if self.documents is None else self.documents.num

    @property
    def counted(self) -> bool:
        """True if rows are independent and every score is 0 or 1."""
        return self.documents is None and bool(np.isin(self.ours, (0, 1)).all() and np.isin(self.theirs, (0, 1)).all())

    def simulate(self, gain: float, *, num_rows: int, num_tests: int) -> SimulatedTests:
        """Return tests of `num_rows` rows in which the first comparison has this true gain (fixed seed)."""
        generator = np.random.default_rng(SEED)
        if self.counted:
            if gain not in self._tilts:
                self._tilts[gain] = self._tilted(gain)
            weights = multinomial(generator, self._tilts[gain], num_rows=num_rows, num_tests=num_tests)
            return self._from_counts(weights.astype(np.float64))
        return self._from_normal(generator, gain, scale=num_rows / len(self.ours), num_tests=num_tests)

    @cached_property
    def _distinct(self) -> tuple[NDArray[np.int8], FloatArray]:
        """The distinct rows [U, 2 C + K] of scores and memberships, and their numbers [U]."""
        table = np.concatenate([self.ours, self.theirs, self.members], axis=1).astype(np.int8)
        rows, counts = np.unique(table, axis=0, return_counts=True)
        return self._with_both_signs(rows, counts.astype(np.float64))

    def _with_both_signs(self, rows: NDArray[np.int8], counts: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
        """Add half a row that the candidate wins, and half a row that it loses, to each group without such a row."""
        num = self.ours.shape[1]
        added = []
        for group in range(self.members.shape[1]):
            inside = rows[rows[:, 2 * num + group] == 1]
            for sign in (1, -1):
                if len(inside) and not (inside[:, 0].astype(int) - inside[:, num] == sign).any():
                    row = inside[0].copy()
                    row[0], row[num] = sign == 1, sign == -1
                    added.append(row)
        if not added:
            return rows, counts
        return np.concatenate([rows, np.stack(added)]), np.concatenate([counts, np.full(len(added), 0.5)])

    def _tilted(self, gain: float) -> FloatArray:
        """Return probabilities [U] of the distinct rows with the true gain, as close as possible to their shares."""
        rows, counts = self._distinct
        num = self.ours.shape[1]
        first = rows[:, 0].astype(np.float64) - rows[:, num]
        inside = rows[:, 2 * num :].astype(np.float64)
        aims = self._group_aims(gain, sizes=counts @ inside)
        moments = np.concatenate([(first - gain)[:, None], inside * (first[:, None] - aims)], axis=1)
        logs = np.log(counts)

        def loss(tilt: FloatArray) -> tuple[float, FloatArray]:
            exponents = logs + moments @ tilt
            total = logsumexp(exponents)
            return float(total + RIDGE * tilt @ tilt), np.exp(exponents - total) @ moments + 2 * RIDGE * tilt

        tilt = minimize(loss, np.zeros(moments.shape[1]), jac=True, method="BFGS").x
        weights = np.exp(logs + moments @ tilt - logsumexp(logs + moments @ tilt))
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def _group_aims(self, gain: float, *, sizes: FloatArray) -> FloatArray:
        """Return the true changes [K] of the groups if the true gain of all rows is `gain`."""
        if not len(self.group_changes):
            return self.group_changes
        return self.group_changes + gain - float(np.average(self.group_changes, weights=sizes))

    def _from_counts(self, weights: FloatArray) -> SimulatedTests:
        rows, _ = self._distinct
        num = self.ours.shape[1]
        ours, theirs, inside = rows[:, :num] == 1, rows[:, num : 2 * num] == 1, rows[:, 2 * num :] == 1
        kinds = np.stack([ours & theirs, ours & ~theirs, ~ours & theirs, ~ours & ~theirs], axis=-1)  # [U, C, 4]
        cells = np.einsum("tr,rcf->tcf", weights, kinds.astype(np.float64)).round().astype(np.int64)
        wins, losses = (
            weights @ (inside & (kind[:, :1])).astype(np.float64) for kind in (ours & ~theirs, ~ours & theirs)
        )
        sizes = np.maximum(weights @ inside.astype(np.float64), 1)
        group_gains, discordance = (wins - losses) / sizes, np.maximum((wins + losses) / sizes, 1 / sizes)
        return SimulatedTests(
            num_rows=int(weights[0].sum()),
            gains=(cells[..., 1] - cells[..., 2]) / cells.sum(axis=-1),
            p_values=midp_values(cells[..., 1], only_other=cells[..., 2]),
            cells=cells,
            errors=np.zeros(cells.shape[:2]),
            freedom=np.full(num, np.inf),
            group_gains=group_gains,
            group_errors=np.sqrt(np.maximum(discordance - group_gains**2, discordance / sizes) / sizes),
            group_freedom=np.full(inside.shape[1], np.inf),
        )

    @cached_property
    def _means(self) -> tuple[FloatArray, FloatArray, FloatArray]:
        """The means [C + K] of comparisons and groups, their covariance, and their degrees of freedom."""
        differences = self.ours - self.theirs
        inside = np.concatenate([np.ones_like(differences), self.members], axis=1)
        values = np.concatenate([differences, np.repeat(differences[:, :1], self.members.shape[1], axis=1)], axis=1)
        sizes = inside.sum(axis=0)
        means = (values * inside).sum(axis=0) / sizes
        influence = inside * (values - means) / sizes
        if self.documents is None:
            return means, np.asarray(influence.T @ influence), np.full(len(means), np.inf)
        codes, num = self.documents.codes, self.documents.num
        sums = np.stack([np.bincount(codes, column, num) for column in influence.T], axis=1)
        shares = np.stack([np.bincount(codes, column, num) for column in inside.T], axis=1) / sizes
        unevenness = np.sum(shares**2, axis=0)
        spread = np.sqrt(np.clip(1 - unevenness, 1e-3, 1))
        return means, np.asarray((sums / spread).T @ (sums / spread)), np.maximum(1 / unevenness - 1, 1.0)

    def _from_normal(
        self, generator: np.random.Generator, gain: float, *, scale: float, num_tests: int
    ) -> SimulatedTests:
        means, covariance, freedom = self._means
        num = self.ours.shape[1]
        aims = means.copy()
        aims[0] = gain
        aims[num:] = self._group_aims(gain, sizes=self.members.sum(axis=0).astype(np.float64))
        least = np.eye(len(means)) / len(self.ours) / self.num_units  # as if one unit differed
        covariance, freedom = (covariance + least) / scale, freedom * scale
        half_of_them = generator.standard_normal((-(-num_tests // 2), len(aims))) @ np.linalg.cholesky(covariance).T
        drawn = aims + np.concatenate([half_of_them, -half_of_them])[:num_tests]  # their mean is the true gain
        finite = np.where(np.isfinite(freedom), freedom, 1e9)
        noise = np.sqrt(generator.chisquare(finite, size=drawn.shape) / finite)
        errors = np.sqrt(np.diag(covariance)) * np.where(np.isfinite(freedom), noise, 1.0)
        if self.documents is not None and self.num_units * scale < LEAST_DOCUMENTS:
            errors = np.full_like(errors, np.inf)
        return SimulatedTests(
            num_rows=max(1, round(scale * len(self.ours))),
            gains=drawn[:, :num],
            p_values=2 * t_sf(np.abs(drawn) / errors, freedom)[:, :num],
            cells=None,
            errors=errors[:, :num],
            freedom=freedom[:num],
            group_gains=drawn[:, num:],
            group_errors=errors[:, num:],
            group_freedom=freedom[num:],
        )
