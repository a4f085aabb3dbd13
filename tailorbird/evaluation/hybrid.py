"""Fit a hybrid's parts and routing rule on validation, and apply the rule to predictions."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import HybridConfig
from tailorbird.config.metrics import row_metric
from tailorbird.evaluation.gates.cost import (
    RowTokens,
    ServingUsage,
    shares_by_round,
    tokens_by_round,
)
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
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
    for role, kind in kinds.items():
        if kind == "hybrid":
            continue
        known = best.setdefault(cost_class(kind), role)
        if validation[role] > validation[known]:
            best[cost_class(kind)] = role
    return tuple(role for _, role in sorted(best.items()))


def roles_on_validation(
    config: HybridConfig | None, kinds: Mapping[str, str], *, validation: Mapping[str, float]
) -> tuple[str, ...]:
    """Return the roles of the models whose predictions of the validation rows are stored.

    They are the incumbent, the candidate if there is one and, for a cascade, the best model of each
    cost. `kinds` and `validation` are those of the servable models by role.
    """
    roles = tuple(role for role in ("incumbent", "candidate") if role in kinds)
    if config is None or config.by == "group":
        return roles
    return tuple(dict.fromkeys((*roles, *best_of_each_cost(kinds, validation=validation))))


def fit_hybrid(
    config: HybridConfig, tables: Mapping[str, Predictions], *, metric: str
) -> FrozenHybrid | None:
    """Return the hybrid fitted on validation, or None if no hybrid is as good as the best single
    model.

    `tables` are predictions of the validation rows by role. They need `incumbent`, for a hybrid by
    group `candidate`, and for a cascade the roles of `best_of_each_cost`. Without a candidate,
    there is no hybrid by group.
    """
    if config.by == "group":
        if "candidate" not in tables:
            return None
        assert config.column is not None  # validated by the recipe schema
        return _fit_groups(config.column, tables, metric=metric)
    return _fit_cascade(tables, metric=metric)


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

    def gain(group: str) -> float:
        rows = np.flatnonzero(groups == group).tolist()
        ours, theirs = (score_table(metric, table.take(rows)) for table in (candidate, incumbent))
        return ours - theirs

    named = sorted(value for value in set(groups) if value != NO_GROUP)
    kept = tuple(value for value in named if gain(value) >= 0)
    if not kept or len(kept) == len(set(groups)):
        return None
    routing = Routing(by="group", column=column, values=kept, threshold=None)
    return _frozen(routing, tables, first="incumbent", second="candidate", metric=metric)


def _fit_cascade(tables: Mapping[str, Predictions], *, metric: str) -> FrozenHybrid | None:
    """Return the cascade with the cheapest second part; of several, the one whose first part
    answers most rows.

    The parts are the best models of two cost classes.
    """
    scores = {role: score_table(metric, table) for role, table in tables.items()}
    roles = best_of_each_cost(
        {role: table.model for role, table in tables.items()}, validation=scores
    )
    for number, second in enumerate(roles):
        cascades = [
            _best_cascade(
                tables, first=first, second=second, metric=metric, to_reach=max(scores.values())
            )
            for first in roles[:number]
        ]
        fitted = [cascade for cascade in cascades if cascade is not None]
        if fitted:
            return min(fitted, key=lambda cascade: cascade.share_to_second)
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
    alone = score_table(metric, tables[second])
    reached = []
    for threshold in _thresholds(tables[first].calibrated):
        routing = Routing(by="cascade", threshold=threshold)
        cascade = _frozen(routing, tables, first=first, second=second, metric=metric)
        if cascade.validation < alone:
            break
        if cascade.validation >= to_reach:
            table = routed_predictions(routing, first=tables[first], second=tables[second])
            reached.append((cascade, table.per_row(row_metric(metric))))
    if not reached:
        return None
    best, scores_of_best = max(reached, key=lambda one: one[0].validation)
    close = [
        cascade
        for cascade, scores in reached
        if best.validation - cascade.validation
        <= np.std(scores_of_best - scores) / np.sqrt(len(scores))
    ]
    return close[-1]


def _thresholds(confidences: NDArray[np.float64]) -> Iterator[float]:
    """Yield a threshold for each of `SHARES` that leaves rows to both parts, the highest threshold
    first.

    A threshold is halfway between two confidences, so that rounding in serving does not change the
    route of a row.
    """
    values = np.sort(confidences[np.isfinite(confidences)])[::-1]
    known = set()
    for share in SHARES:
        if len(values):
            least = values[max(1, round(share * len(values))) - 1]
        else:
            least = 0.0
        below = values[values < least]
        if not len(below) or least in known:
            continue
        known.add(least)
        threshold = float((least + below[0]) / 2)
        if 0 <= threshold <= 1 and below[0] < threshold:
            yield threshold


def _frozen(
    routing: Routing, tables: Mapping[str, Predictions], *, first: str, second: str, metric: str
) -> FrozenHybrid:
    return FrozenHybrid(
        routing=routing,
        first=first,
        second=second,
        validation=score_table(
            metric, routed_predictions(routing, first=tables[first], second=tables[second])
        ),
        share_to_second=share_to_second(routing, tables[first]),
    )


def apply_routing(
    routing: Routing, *, first: ModelPredictions, second: ModelPredictions
) -> ModelPredictions:
    """Return the hybrid's predictions for the test rows and for the changed rows that both parts
    predict."""
    changed = {
        name: routed_predictions(routing, first=table, second=second.changed[name])
        for name, table in first.changed.items()
        if name in second.changed
    }
    return ModelPredictions(
        routed_predictions(routing, first=first.clean, second=second.clean), changed
    )


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
    return ServingUsage(_summed(cpu_s), _summed(gpu_s) if gpu_s else None, tokens)


def _summed(columns: list[NDArray[np.float64]]) -> tuple[float, ...]:
    return tuple(np.sum(columns, axis=0).tolist())


def answered_by_first(routing: Routing, routed: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the mask [N] of the rows that the first part answers, if the second answers those of
    `routed`."""
    if routing.by == "group":
        return ~routed
    return np.ones_like(routed)


def routed_to_second(routing: Routing, table: Predictions) -> NDArray[np.bool_]:
    """Return the mask [N] of the rows of `table` (predictions of the first part) that the second
    part answers."""
    if routing.column is not None:
        groups = table.groups.get(routing.column)
    else:
        groups = None
    return np.asarray(
        routes_to_second(routing, groups=groups, confidences=table.calibrated), dtype=np.bool_
    )


def routed_predictions(routing: Routing, *, first: Predictions, second: Predictions) -> Predictions:
    """Return the hybrid's predictions: for each row, those of the part that the routing selects."""
    mask = routed_to_second(routing, first)
    of_first = first.take(np.flatnonzero(~mask).tolist())
    of_second = second.take(np.flatnonzero(mask).tolist())
    return merged(of_first, of_second, to_second=mask)


def merged(first: Predictions, second: Predictions, *, to_second: NDArray[np.bool_]) -> Predictions:
    """Return a hybrid's predictions for all rows, in order, with the measures that both parts have.

    `first` and `second` have the rows that each part answers; `to_second` is the mask [N] of those
    of the second.
    """
    tables = [table for table in (first, second) if len(table)]
    with_logprobs = any(
        table.logprobs is not None for table in tables
    )  # a part without a language model has none
    joined = Predictions(
        model="hybrid",
        row_ids=tuple(row for table in tables for row in table.row_ids),
        labels=tuple(label for table in tables for label in table.labels),
        outputs=tuple(output for table in tables for output in table.outputs),
        scores=np.concatenate([table.scores for table in tables]),
        confidences=np.concatenate([table.confidences for table in tables]),
        calibrated=np.concatenate([table.calibrated for table in tables]),
        groups={
            name: tuple(value for table in tables for value in table.groups[name])
            for name in tables[0].groups
        },
        measures={
            name: np.concatenate([table.measures[name] for table in tables])
            for name in tables[0].measures
            if all(name in table.measures for table in tables)
        },
        clusters=None
        if first.clusters is None
        else tuple(name for table in tables for name in table.clusters or ()),
        logprobs=tuple(table.logprobs_of(row) for table in tables for row in range(len(table)))
        if with_logprobs
        else None,
    )
    order = np.argsort(np.concatenate([np.flatnonzero(~to_second), np.flatnonzero(to_second)]))
    return joined.take(order.tolist())
