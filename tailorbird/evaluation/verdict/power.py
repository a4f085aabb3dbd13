"""Was the test big enough? Resample its rows, call `decide` each time, and count the outcomes.

Before, the candidate's answers are changed on random rows until its gain over the strongest model
without fine-tuning is the stated one. Gates that fail keep this state, and all others are assumed
to pass. Intervals in the resamples are Newcombe's for shares of independent rows, Student's t over
documents, and normal for other metrics, with the jackknife values of means over classes.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.metrics import METRICS, row_metric
from tailorbird.evaluation.hybrid import FrozenHybrid, routed_predictions
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.class_metrics import jackknife_values
from tailorbird.evaluation.statistics.distributions import t_isf
from tailorbird.evaluation.statistics.documents import LEAST_DOCUMENTS, Documents, documents_of
from tailorbird.evaluation.statistics.effect import unseen_rate
from tailorbird.evaluation.statistics.paired import newcombe_limits
from tailorbird.evaluation.statistics.power import MAX_ROWS, TARGET_POWER
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.evaluation.verdict.decide import (
    ANCHOR,
    CANDIDATE,
    HYBRID,
    Entry,
    Outcome,
    blocking_roles,
    decide,
)
from tailorbird.evaluation.verdict.parts import Power
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.evaluation.verdict.relation import CostTable, Gain, Relation, relation_of

FloatArray = NDArray[np.float64]

NUM_TESTS = 400
SEED = 1998
CHOSEN = (Outcome.FINE_TUNE, Outcome.HYBRID)
LEAST_REST = 1e-6
GATES = "gates"


@dataclass(frozen=True)
class PowerInputs:
    """The compared models of a test."""

    tables: Mapping[str, Predictions]  # by role, with those of the hybrid and of the anchor
    entries: tuple[Entry, ...]
    costs: CostTable
    hybrid: FrozenHybrid | None = None
    is_anchor_missing: bool = (
        False  # the anchor cannot predict these rows, so nothing replaces for cost
    )

    @property
    def protocol(self) -> TestProtocol:
        return self.costs.protocol


def power_of(inputs: PowerInputs) -> Power:
    """Return how often such tests choose a fine-tuned model (fixed seeds)."""
    entries = tuple(replace(entry, passes=not entry.fails) for entry in inputs.entries)
    inputs = replace(inputs, entries=entries)
    protocol = inputs.protocol
    strongest = _strongest(inputs)
    num_rows = len(inputs.tables[CANDIDATE])
    by_gain = {}
    for gain in (protocol.minimum_gain, protocol.expected_gain):
        by_gain[gain] = SimulatedTests(_at_gain(inputs, gain=gain, over=strongest))
    expected = by_gain[protocol.expected_gain]
    at_expected, limits = expected.outcomes(num_rows)
    at_minimum, _ = by_gain[protocol.minimum_gain].outcomes(num_rows)
    rows_needed = None
    # if the gates of every fine-tuned model fail, more rows do not help
    if any(entry.is_fine_tuned and entry.passes for entry in entries):
        rows_needed = _rows_needed(
            expected, num_rows=num_rows, is_enough=at_expected >= TARGET_POWER
        )
    return Power(
        over=strongest,
        at_minimum_gain=at_minimum,
        at_expected_gain=at_expected,
        rows_needed=rows_needed,
        limited_by=limits.most_common(1)[0][0] if limits else "",
    )


def _strongest(inputs: PowerInputs) -> str:
    """Return the role of the model with the highest score of those that block the candidate."""
    return max(
        blocking_roles(inputs.entries),
        key=lambda role: score_table(inputs.protocol.metric, inputs.tables[role]),
    )


def _rows_needed(tests: "SimulatedTests", *, num_rows: int, is_enough: bool) -> int | None:
    """Return the rows with which a fine-tuned model is chosen in 80% of tests, by bisection to
    5%."""

    def enough(rows: int) -> bool:
        return tests.outcomes(rows)[0] >= TARGET_POWER

    low = num_rows
    high = num_rows
    if is_enough:
        while low > 2 and enough(low):
            high = low
            low = low // 2
    else:
        while not enough(high):
            low = high
            high = 2 * high
            if high > MAX_ROWS:
                return None
    while high > 1.05 * low + 1:
        middle = round((low * high) ** 0.5)
        if enough(middle):
            high = middle
        else:
            low = middle
    return high


def _at_gain(inputs: PowerInputs, *, gain: float, over: str) -> PowerInputs:
    """Return the inputs with a candidate whose gain over the model in the role `over` is `gain`."""
    metric = inputs.protocol.metric
    target = score_table(metric, inputs.tables[over]) + gain
    tables = dict(inputs.tables)
    tables[CANDIDATE] = with_score(tables[CANDIDATE], target=target, metric=metric)
    if inputs.hybrid is not None:
        hybrid = inputs.hybrid
        tables[HYBRID] = routed_predictions(
            hybrid.routing, first=tables[hybrid.first], second=tables[hybrid.second]
        )
    return replace(inputs, tables=tables)


def with_score(table: Predictions, *, target: float, metric: str) -> Predictions:
    """Return the predictions with random rows made right, or wrong, until the score is the
    target."""
    score = score_table(metric, table)
    is_better = target > score
    order = np.random.RandomState(SEED).permutation(len(table))
    low = 0
    high = len(table)
    while low < high:  # bisection of the number of changed rows
        middle = (low + high) // 2
        changed = score_table(
            metric, _changed(table, order[:middle], is_right=is_better, metric=metric)
        )
        if (changed < target) if is_better else (changed > target):
            low = middle + 1
        else:
            high = middle
    return _changed(table, order[:low], is_right=is_better, metric=metric)


def _changed(
    table: Predictions, rows: NDArray[np.int64], *, is_right: bool, metric: str
) -> Predictions:
    scores = np.array(table.scores)
    scores[rows] = float(is_right)
    outputs = list(table.outputs)
    classes = sorted(set(table.labels))
    following = dict(zip(classes, classes[1:] + classes[:1], strict=True))
    for row in rows:
        outputs[row] = table.labels[row] if is_right else following[table.labels[row]]
    measures = dict(table.measures)
    if metric in measures:
        measures[metric] = np.array(measures[metric])
        measures[metric][rows] = float(is_right)
    return replace(table, scores=scores, outputs=tuple(outputs), measures=measures)


@dataclass(frozen=True)
class _Resampled:
    """The gains of one pair of models in B resamples, with what their intervals need."""

    gains: FloatArray  # [B]
    num_units: FloatArray  # [B]
    cells: NDArray[np.int64] | None = None
    """[B, 4] of `PairedCounts`; None if intervals come from the standard errors."""
    errors: FloatArray | float = 0.0
    freedom: FloatArray | float = np.inf
    """Degrees of freedom; inf for the normal distribution."""

    def ends(self, level: float) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Return the lower and upper ends [B] of the intervals, and the lower ends in tests of
        non-inferiority."""
        if self.cells is not None:
            low, high = newcombe_limits(self.cells, alpha=level)
            return low, high, low
        half = t_isf(level / 2, self.freedom) * self.errors
        unseen = np.array([unseen_rate(units, alpha=level) for units in self.num_units])
        is_independent = np.isinf(self.freedom)
        half = np.where(is_independent, np.maximum(half, unseen), half)
        return self.gains - half, self.gains + half, self.gains - np.maximum(half, unseen)


class SimulatedTests:
    """Resampled tests of the same models: `decide` is called on each of them.

    Rows are drawn with replacement, or whole documents if rows share documents. A row that is drawn
    twice is two units.
    """

    def __init__(self, inputs: PowerInputs) -> None:
        self._inputs = inputs
        tables = inputs.tables
        first = tables[CANDIDATE]
        metric = inputs.protocol.metric
        self._is_counted = METRICS[metric].is_share and first.clusters is None
        columns = product(tables, dict.fromkeys((metric, row_metric(metric))))
        scores = {(role, name): _scores(tables[role], metric=name) for role, name in columns}
        self._documents = documents_of(first.clusters, num_rows=len(first))
        self._is_clustered = first.clusters is not None
        # Rows on which all models have the same scores are drawn together.
        stacked = np.stack(list(scores.values()), axis=1)
        self._unit_counts = np.ones(self._documents.num)
        if not self._is_clustered:
            stacked, counts = np.unique(stacked, axis=0, return_counts=True)
            self._unit_counts = counts.astype(np.float64)
        self._scores = dict(zip(scores, stacked.T, strict=True))

    def outcomes(self, num_rows: int) -> tuple[float, Counter[str]]:
        """Return the share of tests of `num_rows` rows that choose a fine-tuned model, and what
        prevents the others."""
        num_units = max(
            1, round(num_rows * self._unit_counts.sum() / len(self._inputs.tables[CANDIDATE]))
        )
        shares = self._unit_counts / self._unit_counts.sum()
        # NumPy never changes the numbers of a RandomState, so `verify` draws the same ones.
        weights = (
            np.random.RandomState(SEED)
            .multinomial(num_units, shares, size=NUM_TESTS)
            .astype(np.float64)
        )
        inputs = self._inputs
        alpha = inputs.costs.alpha
        cost_of = cache(inputs.costs.pair)

        @cache
        def resampled(first: str, second: str) -> _Resampled:
            return self._resample((first, second), weights)

        @cache
        def priced_gains(first: str, second: str) -> FloatArray:
            return self._priced_gains((first, second), weights)

        @cache
        def ends(first: str, second: str, share: int) -> tuple[FloatArray, FloatArray, FloatArray]:
            return resampled(first, second).ends(alpha / share)

        def relate_in(test: int, first: str, second: str, share: int) -> Relation:
            pair = (first, second)
            low, high, lowest = ends(first, second, share)
            priced = float(priced_gains(first, second)[test])
            gain = Gain(
                gain=float(resampled(first, second).gains[test]),
                interval=(float(low[test]), float(high[test])),
                lowest=float(lowest[test]),
                level=alpha / share,
                priced=(priced, (priced, priced)),
            )
            is_anchored = not inputs.is_anchor_missing
            if ANCHOR in inputs.tables and ANCHOR not in pair:
                is_anchored = relate_in(test, first, ANCHOR, 1).is_non_inferior
            return relation_of(
                pair,
                gain,
                cost=cost_of(first, second),
                protocol=inputs.protocol,
                is_anchored=is_anchored,
            )

        num_chosen = 0
        limits: Counter[str] = Counter()
        for test in range(NUM_TESTS):
            decision = decide(inputs.entries, partial(relate_in, test), protocol=inputs.protocol)
            if decision.outcome in CHOSEN:
                num_chosen += 1
            else:
                limits[decision.blocked_by[0] if decision.blocked_by else GATES] += 1
        return num_chosen / NUM_TESTS, limits

    def _priced_gains(self, pair: tuple[str, str], weights: FloatArray) -> FloatArray:
        metric = row_metric(self._inputs.protocol.metric)
        differences = self._scores[pair[0], metric] - self._scores[pair[1], metric]
        sizes = np.ones_like(differences)
        if self._is_clustered:
            differences = self._documents.sums(differences)
            sizes = self._documents.sizes
        return np.asarray(weights @ differences / (weights @ sizes), dtype=np.float64)

    def _resample(self, pair: tuple[str, str], weights: FloatArray) -> _Resampled:
        metric = self._inputs.protocol.metric
        first = self._scores[pair[0], metric]
        second = self._scores[pair[1], metric]
        differences = first - second
        if self._is_clustered:
            return _clustered(self._documents, differences, weights)
        totals = weights.sum(axis=1)
        gains = weights @ differences / totals
        if self._is_counted:
            first_wrong = 1 - first
            second_wrong = 1 - second
            right = (first * second, first * second_wrong, first_wrong * second)
            kinds = np.stack([*right, first_wrong * second_wrong], axis=1)
            cells = np.rint(weights @ kinds).astype(np.int64)
            # exact, so that comparisons with limits are
            gains = (cells[:, 1] - cells[:, 2]) / totals
            return _Resampled(gains, num_units=totals, cells=cells)
        variances = np.maximum(weights @ differences**2 / totals - gains**2, 0.0) / totals
        return _Resampled(gains, num_units=totals, errors=np.sqrt(variances))


def _clustered(documents: Documents, differences: FloatArray, weights: FloatArray) -> _Resampled:
    """Return the CR2 estimates of resampled documents (see `statistics.documents`).

    The share of a document is that in a resample of average size.
    """
    sums = documents.sums(differences)
    sizes = documents.sizes
    num_rows = weights @ sizes
    gains = weights @ sums / num_rows
    shares = sizes / num_rows.mean()
    rest = np.maximum(1 - shares, LEAST_REST)  # a document may be larger than a small test
    squares = weights @ (sums**2 / rest) - 2 * gains * (weights @ (sums * sizes / rest))
    squares += gains**2 * (weights @ (sizes**2 / rest))
    errors = np.sqrt(np.maximum(squares, 0.0)) / num_rows
    across = shares**2 / rest
    inverse = weights @ shares**2 + (weights @ across) ** 2 - weights @ across**2
    freedom = 1 / inverse
    num_units = weights.sum(axis=1)
    is_unknown = (num_units < LEAST_DOCUMENTS) | (documents.num == 1)
    errors = np.where(is_unknown, np.inf, errors)
    return _Resampled(gains, num_units=freedom + 1, errors=errors, freedom=freedom)


def _scores(table: Predictions, *, metric: str) -> FloatArray:
    if METRICS[metric].is_over_classes:
        return jackknife_values(table, metric=metric)
    return table.per_row(metric)
