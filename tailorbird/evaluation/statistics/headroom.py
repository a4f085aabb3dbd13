"""How much a model's score can rise at most: an upper confidence bound of what it misses to the
highest score, 1."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import betaincinv

from tailorbird.config.metrics import METRICS
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.statistics.paired import compare
from tailorbird.evaluation.statistics.scoring import HIGHEST_SCORE, score_table


@dataclass(frozen=True)
class Headroom:
    """The most that another model can gain over a model with this score on these rows. Gains are
    shares."""

    score: float
    most: float  # upper confidence bound of the highest score minus the true score
    level: float  # one-sided: `most` is too low in at most this share of samples of rows
    num_rows: int


def headroom_of(table: Predictions, *, metric: str, alpha: float) -> Headroom:
    """Return the headroom of a model with these predictions, one-sided at level 1 - alpha.

    The bound is that of `highest_rate`: exact for a share of independent rows, cautious for a mean
    of other scores. The empirical likelihood of `means` is too low in 9% of samples with a few
    wrong rows instead of 5%. For a mean over classes, each class counts as many rows as the rarest
    one, because few rows of a class seldom contain a rare error. If rows share documents, the bound
    is at least that of a comparison with a model that is always right: see `paired.compare`.
    """
    score = score_table(metric, table)
    missing = max(HIGHEST_SCORE - score, 0.0)
    if METRICS[metric].is_over_classes:
        units = _balanced_units(table)
    else:
        units = len(set(table.clusters or table.row_ids))
    most = highest_rate(missing * units, n=units, alpha=alpha)
    if table.clusters is not None:
        most = max(
            most, -compare(table, other=_always_right(table), metric=metric, alpha=2 * alpha).lowest
        )
    return Headroom(score=score, most=min(most, HIGHEST_SCORE), level=alpha, num_rows=len(table))


def highest_rate(events: float, *, n: int, alpha: float) -> float:
    """Return Clopper and Pearson's upper limit, one-sided at level 1 - alpha, of the rate of events
    in n rows.

    `events` may be a sum of parts of events.
    """
    if events >= n:
        return 1.0
    return float(betaincinv(events + 1, n - events, 1 - alpha))


def _always_right(table: Predictions) -> Predictions:
    ones = np.ones(len(table))
    return replace(
        table, outputs=table.labels, scores=ones, measures=dict.fromkeys(table.measures, ones)
    )


def _balanced_units(table: Predictions) -> int:
    """Return the number of classes times the rows, or documents, of the rarest class.

    An error changes a mean over classes by at most 1 divided by this number of rows.
    """
    units = defaultdict(set)
    for label, unit in zip(table.labels, table.clusters or table.row_ids, strict=True):
        units[label].add(unit)
    return len(units) * min(map(len, units.values()))
