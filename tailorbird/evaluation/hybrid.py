"""Fit a hybrid's parts and routing rule on validation, and apply the rule to predictions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import CASCADE
from tailorbird.config.metrics import row_metric
from tailorbird.evaluation.gates.cost import (
    RowTokens,
    ServingUsage,
    shares_by_round,
    tokens_by_round,
)
from tailorbird.evaluation.predictions import (
    ModelPredictions,
    Predictions,
    joined_predictions,
)
from tailorbird.evaluation.statistics.scoring import score_table
from tailorbird.registry.hybrid_routing import NO_GROUP, Routing, routes_to_second
from tailorbird.registry.kinds import spec_of

SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Shares of the validation rows that the first part of a cascade may answer. Few shares limit
selection by chance."""


@dataclass(frozen=True)
class FrozenHybrid:
    """The hybrid of a run, as fitted on validation before the test rows are read. Parts are roles
    of the family."""

    routing: Routing
    first: str
    second: str
    validation: float  # score on validation
    share_to_second: float  # share of the validation rows that the second part answers

    @property
    def parts(self) -> tuple[str, str]:
        """The roles of both parts."""
        return self.first, self.second


def cost_class(kind: str) -> int:
    """Return the class of a kind's serving cost: 0 without a neural network, 1 with one, 2 for an
    external endpoint.

    The cost is measured after the hybrid is frozen. The first part of a cascade has a lower class
    than the second.
    """
    spec = spec_of(kind)
    if spec.calls_endpoint:
        return 2
    return int(spec.uses_base)


def best_of_each_cost(
    kinds: Mapping[str, str], *, validation: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the role with the highest validation score in each cost class, the cheapest class
    first.

    `kinds` and `validation` are by role. A hybrid cannot be a part of a hybrid. The first of equal
    scores wins.
    """
    best: dict[int, str] = {}
    for role in sorted(kinds, key=validation.__getitem__, reverse=True):  # stable
        if kinds[role] != "hybrid":
            best.setdefault(cost_class(kinds[role]), role)
    return tuple(best[cost] for cost in sorted(best))


def roles_on_validation(
    config: str | None, kinds: Mapping[str, str], *, validation: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the roles of the models whose predictions of the validation rows are stored.

    They are the incumbent, the candidate if there is one and, for a cascade, the best model of each
    cost. `kinds` and `validation` are those of the servable models by role.
    """
    roles = tuple(role for role in ("incumbent", "candidate") if role in kinds)
    if config != CASCADE:
        return roles
    return tuple(dict.fromkeys((*roles, *best_of_each_cost(kinds, validation=validation))))


def fit_hybrid(
    config: str, tables: Mapping[str, Predictions], *, metric: str
) -> FrozenHybrid | None:
    """Return the hybrid that `config` names, fitted on validation, or None if no hybrid is as good
    as the best single model.

    `tables` are predictions of the validation rows by role. They need `incumbent`, for a hybrid by
    group `candidate`, and for a cascade the roles of `best_of_each_cost`. Without a candidate,
    there is no hybrid by group.
    """
    if config == CASCADE:
        return _fit_cascade(tables, metric=metric)
    if "candidate" not in tables:
        return None
    return _fit_groups(config, tables, metric=metric)


def _fit_groups(
    column: str, tables: Mapping[str, Predictions], *, metric: str
) -> FrozenHybrid | None:
    """Return the hybrid whose second part, the candidate, answers the groups in which it is not
    worse."""
    incumbent = tables["incumbent"]
    candidate = tables["candidate"]
    if incumbent.model == "hybrid":
        return None

    groups = np.array(incumbent.groups[column], dtype=object)
    names = set(groups)
    values = []
    for name in sorted(names - {NO_GROUP}):
        rows = np.flatnonzero(groups == name).tolist()
        gain = score_table(metric, candidate.take(rows)) - score_table(metric, incumbent.take(rows))
        if gain >= 0:
            values.append(name)
    if not values or len(values) == len(names):
        return None

    routing = Routing(by="group", column=column, values=tuple(values), threshold=None)
    table = routed_predictions(routing, first=incumbent, second=candidate)
    return FrozenHybrid(
        routing=routing,
        first="incumbent",
        second="candidate",
        validation=score_table(metric, table),
        share_to_second=share_to_second(routing, incumbent),
    )


def _fit_cascade(tables: Mapping[str, Predictions], *, metric: str) -> FrozenHybrid | None:
    """Return the cascade with the cheapest second part; of several, the one whose first part
    answers most rows.

    The parts are the best models of two cost classes.
    """
    scores = {role: score_table(metric, table) for role, table in tables.items()}
    kinds = {role: table.model for role, table in tables.items()}
    roles = best_of_each_cost(kinds, validation=scores)
    best = max(scores.values())

    for number, second in enumerate(roles):
        cascades = []
        for first in roles[:number]:
            cascade = _best_cascade(
                tables, first=first, second=second, metric=metric, to_reach=best
            )
            if cascade is not None:
                cascades.append(cascade)
        if cascades:
            return min(cascades, key=lambda cascade: cascade.share_to_second)
    return None


def _best_cascade(
    tables: Mapping[str, Predictions], *, first: str, second: str, metric: str, to_reach: float
) -> FrozenHybrid | None:
    """Return the cascade of two models, or None if it does not score `to_reach`, the score of the
    best single model.

    Starting with its most confident tenth, the first part answers more rows until the cascade
    scores lower than the second part alone. Of the cascades that score `to_reach`, the one whose
    first part answers most rows is returned among those within one standard error of the highest
    score. A high score of a single threshold may be chance.
    """
    score_of_second = score_table(metric, tables[second])
    reached: list[tuple[FrozenHybrid, NDArray[np.float64]]] = []
    for threshold in _thresholds(tables[first].calibrated):
        routing = Routing(by="cascade", threshold=threshold)
        table = routed_predictions(routing, first=tables[first], second=tables[second])
        score = score_table(metric, table)
        if score < score_of_second:
            break
        if score >= to_reach:
            cascade = FrozenHybrid(
                routing=routing,
                first=first,
                second=second,
                validation=score,
                share_to_second=share_to_second(routing, tables[first]),
            )
            reached.append((cascade, table.per_row(row_metric(metric))))
    if not reached:
        return None

    best, best_rows = max(reached, key=lambda pair: pair[0].validation)
    selected = best
    for cascade, rows in reached:
        standard_error = np.std(best_rows - rows) / np.sqrt(len(rows))
        if best.validation - cascade.validation <= standard_error:
            selected = cascade
    return selected


def _thresholds(confidences: NDArray[np.float64]) -> Iterator[float]:
    """Yield a threshold for each of `SHARES` that leaves rows to both parts, the highest threshold
    first.

    A threshold is halfway between two confidences, so that rounding in serving does not change the
    route of a row.
    """
    values = np.sort(confidences[np.isfinite(confidences)])[::-1]
    if not len(values):
        return
    last = np.inf
    for share in SHARES:
        lowest = values[max(1, round(share * len(values))) - 1]
        below = values[values < lowest]
        if not len(below) or lowest == last:
            continue
        last = lowest
        threshold = float((lowest + below[0]) / 2)
        if 0 <= threshold <= 1 and below[0] < threshold:
            yield threshold


def apply_routing(
    routing: Routing, *, first: ModelPredictions, second: ModelPredictions
) -> ModelPredictions:
    """Return the hybrid's predictions for the test rows and for the changed rows that both parts
    predict."""
    changed = {}
    for name, table in first.changed.items():
        if name in second.changed:
            changed[name] = routed_predictions(routing, first=table, second=second.changed[name])
    clean = routed_predictions(routing, first=first.clean, second=second.clean)
    return ModelPredictions(clean, changed)


def share_to_second(routing: Routing, table: Predictions) -> float:
    """Return the share of the rows of `table` (predictions of the first part) that the second part
    answers."""
    return float(routed_to_second(routing, table).mean())


@dataclass(frozen=True)
class PartUsage:
    """What a part of a hybrid uses if it answers all rows, and how the rows differ."""

    usage: ServingUsage
    lengths: NDArray[np.float64]  # [N] proportional to the time for a row
    tokens: RowTokens | None = None  # of each row, if the part is an external endpoint


def hybrid_usage(
    routing: Routing, *, routed: NDArray[np.bool_], first: PartUsage, second: PartUsage
) -> ServingUsage:
    """Return the hybrid's resources, with those of each part for the rows that it answers.

    `routed` is the mask [N] of the rows that the second part answers. By group, one part answers
    each row. In a cascade, the first part answers every row first. Each round has another part of
    the rows, so the spread over the rounds includes the sampling error of the share and of the
    tokens. At most one part is an external endpoint.
    """
    cpu_s = []
    gpu_s = []
    tokens = None
    for part, answered in ((first, answered_by_first(routing, routed)), (second, routed)):
        num_rounds = len(part.usage.cpu_s)
        shares = shares_by_round(answered, lengths=part.lengths, num_rounds=num_rounds)
        cpu_s.append(np.multiply(shares, part.usage.cpu_s))
        if part.usage.gpu_s is not None:
            gpu_s.append(np.multiply(shares, part.usage.gpu_s))
        if part.tokens is not None:
            tokens = tokens_by_round(part.tokens, answered=answered, num_rounds=num_rounds)

    cpu_sum = tuple(np.sum(cpu_s, axis=0).tolist())
    gpu_sum = tuple(np.sum(gpu_s, axis=0).tolist()) if gpu_s else None
    return ServingUsage(cpu_sum, gpu_sum, tokens)


def answered_by_first(routing: Routing, routed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask [N] of the rows that the first part answers, if the second answers those of
    `routed`."""
    if routing.by == "group":
        return ~routed
    return np.ones_like(routed)


def routed_to_second(routing: Routing, table: Predictions) -> NDArray[np.bool_]:
    """Return the mask [N] of the rows of `table` (predictions of the first part) that the second
    part answers."""
    groups = table.groups.get(routing.column or "")
    mask = routes_to_second(routing, groups=groups, confidences=table.calibrated)
    return np.asarray(mask, dtype=np.bool_)


def routed_predictions(routing: Routing, *, first: Predictions, second: Predictions) -> Predictions:
    """Return the hybrid's predictions: for each row, those of the part that the routing selects."""
    to_second = routed_to_second(routing, first)
    return merged(
        first.take(np.flatnonzero(~to_second).tolist()),
        second.take(np.flatnonzero(to_second).tolist()),
        to_second=to_second,
    )


def merged(first: Predictions, second: Predictions, *, to_second: NDArray[np.bool_]) -> Predictions:
    """Return a hybrid's predictions for all rows, in order, with the measures that both parts have.

    `first` and `second` have the rows that each part answers; `to_second` is the mask [N] of those
    of the second.
    """
    tables = [table for table in (first, second) if len(table)]
    joined = joined_predictions(tables, model="hybrid")
    order = np.argsort(np.concatenate([np.flatnonzero(~to_second), np.flatnonzero(to_second)]))
    return joined.take(order.tolist())
