"""Fit a hybrid's routing rule on validation and apply it to predictions."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.evaluation import HybridConfig
from tailorbird.evaluation.gates.cost import ServingCosts, ServingUsage, combined_usage
from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.statistics.scoring import score_of
from tailorbird.registry.routing import NO_GROUP, Routing, routes_to_candidate

NUM_THRESHOLDS = 50


def fit_routing(config: HybridConfig, *, incumbent: Predictions, candidate: Predictions, metric: str) -> Routing | None:
    """Return the routing fitted on validation, or None if one model would answer every row.

    By group, the candidate answers the groups in which it is not worse than the incumbent. By confidence, the incumbent
    answers its most confident rows: as many as possible while the hybrid scores at least as high as the candidate.
    """
    if config.by == "group":
        assert config.column is not None  # validated by the recipe schema
        return _by_group(config.column, incumbent=incumbent, candidate=candidate, metric=metric)
    return _by_confidence(incumbent=incumbent, candidate=candidate, metric=metric)


def _by_group(column: str, *, incumbent: Predictions, candidate: Predictions, metric: str) -> Routing | None:
    groups, labels = (np.array(values, dtype=object) for values in (incumbent.groups[column], incumbent.labels))
    answers = [np.array(table.outputs, dtype=object) for table in (candidate, incumbent)]

    def gain(rows: NDArray[np.bool_]) -> float:
        ours, theirs = (score_of(metric, labels=labels[rows], outputs=outputs[rows]) for outputs in answers)
        return ours - theirs

    named = sorted(value for value in set(groups) if value != NO_GROUP)
    kept = tuple(value for value in named if gain(groups == value) >= 0)
    if not kept or len(kept) == len(set(groups)):
        return None
    return Routing(by="group", column=column, values=kept, threshold=None)


def _by_confidence(*, incumbent: Predictions, candidate: Predictions, metric: str) -> Routing | None:
    labels = incumbent.labels
    to_reach = score_of(metric, labels=labels, outputs=candidate.outputs)
    for share in np.linspace(1, 0, NUM_THRESHOLDS, endpoint=False)[1:]:  # share of rows that the incumbent answers
        threshold = float(np.quantile(incumbent.calibrated, 1 - share))
        sure = incumbent.calibrated >= threshold
        outputs = np.where(sure, *(np.array(table.outputs, dtype=object) for table in (incumbent, candidate)))
        if score_of(metric, labels=labels, outputs=outputs) >= to_reach:
            return Routing(by="confidence", column=None, values=(), threshold=threshold)
    return None


def apply_routing(routing: Routing, *, incumbent: ModelPredictions, candidate: ModelPredictions) -> ModelPredictions:
    """Return the hybrid's predictions: for each row, those of the model that the routing selects."""
    changed = {
        name: _routed(routing, incumbent=incumbent.changed[name], candidate=candidate.changed[name])
        for name in incumbent.changed
    }
    return ModelPredictions(_routed(routing, incumbent=incumbent.clean, candidate=candidate.clean), changed)


def share_to_candidate(routing: Routing, table: Predictions) -> float:
    """Return the share of the rows of `table` (the incumbent's predictions) that the candidate answers."""
    return float(_mask(routing, table).mean())


def hybrid_cost(routing: Routing, *, costs: ServingCosts, share: float) -> ServingUsage:
    """Return the hybrid's resources per round.

    By group, one model answers each row. By confidence, the incumbent answers every row first.
    """
    kept = 1 - share if routing.by == "group" else 1.0
    return combined_usage(((kept, costs["incumbent"]), (share, costs["candidate"])))


def _mask(routing: Routing, table: Predictions) -> np.ndarray:
    groups = table.groups.get(routing.column) if routing.column is not None else None
    return np.asarray(routes_to_candidate(routing, groups=groups, confidences=table.calibrated), dtype=np.bool_)


def _routed(routing: Routing, *, incumbent: Predictions, candidate: Predictions) -> Predictions:
    mask = _mask(routing, incumbent)

    def pick(name: str) -> NDArray[np.float64]:
        return np.asarray(np.where(mask, getattr(candidate, name), getattr(incumbent, name)))

    pairs = zip(mask, candidate.outputs, incumbent.outputs, strict=True)
    outputs = tuple(ours if routed else theirs for routed, ours, theirs in pairs)
    return replace(
        incumbent,
        model="hybrid",
        outputs=outputs,
        scores=pick("scores"),
        confidences=pick("confidences"),
        calibrated=pick("calibrated"),
    )
