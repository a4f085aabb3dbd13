"""Before test is read: who answers which row of a hybrid, chosen on validation."""

import numpy as np

from evaluation.predictions import Predictions
from evaluation.score import score_of
from models.decide import NO_GROUP, Routing
from recipes.schema import HybridSection

NUM_THRESHOLDS = 50


def freeze_hybrid(
    section: HybridSection, *, incumbent: Predictions, candidate: Predictions, metric: str
) -> Routing | None:
    """The routing that validation speaks for, or None where one of the two models would answer everything.

    By group: the candidate answers the groups in which it is not worse than the incumbent. By confidence: the incumbent
    answers as many of the rows it is surest of as it can without the hybrid scoring less than the candidate.
    """
    if section.by == "group":
        assert section.column is not None  # the schema's rule
        return _by_group(section.column, incumbent=incumbent, candidate=candidate)
    return _by_confidence(incumbent=incumbent, candidate=candidate, metric=metric)


def _by_group(column: str, *, incumbent: Predictions, candidate: Predictions) -> Routing | None:
    groups = np.array(incumbent.groups[column], dtype=object)
    gains = candidate.scores - incumbent.scores
    named = sorted(value for value in set(groups) if value != NO_GROUP)
    kept = tuple(value for value in named if gains[groups == value].mean() >= 0)
    if not kept or len(kept) == len(set(groups)):
        return None
    return Routing(by="group", column=column, values=kept, threshold=None)


def _by_confidence(*, incumbent: Predictions, candidate: Predictions, metric: str) -> Routing | None:
    labels = incumbent.labels
    to_reach = score_of(metric, labels=labels, outputs=candidate.outputs)
    for share in np.linspace(1, 0, NUM_THRESHOLDS, endpoint=False)[1:]:  # of rows that the incumbent would answer
        threshold = float(np.quantile(incumbent.calibrated, 1 - share))
        sure = incumbent.calibrated >= threshold
        outputs = np.where(sure, np.array(incumbent.outputs, dtype=object), np.array(candidate.outputs, dtype=object))
        if score_of(metric, labels=labels, outputs=outputs) >= to_reach:
            return Routing(by="confidence", column=None, values=(), threshold=threshold)
    return None
