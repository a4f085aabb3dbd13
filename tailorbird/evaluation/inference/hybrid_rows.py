"""Predict rows with a hybrid: each part predicts only the rows that it answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.evaluation.hybrid import routed_to_second
from tailorbird.evaluation.predictions import Predictions
from tailorbird.registry.routing import Routing, routes_to_second

T = TypeVar("T")
Predict = Callable[[Rows], Predictions]


def predict_hybrid(routing: Routing, *, rows: Rows, first: Predict, second: Predict) -> Predictions:
    """Return the predictions of a hybrid, from functions that predict rows with its first and its second part.

    By group, each part predicts the rows of its groups. In a cascade, the first part predicts all rows, and the second
    one those on which the first is not confident. A part is not called without rows: an endpoint is paid per request.
    """
    if routing.column is not None:
        mask = np.asarray(routes_to_second(routing, groups=rows.groups[routing.column]), dtype=np.bool_)
        kept = [first(rows.take(np.flatnonzero(~mask)))] if not mask.all() else []
    else:
        of_first = first(rows)
        mask = routed_to_second(routing, of_first)
        kept = [take(of_first, np.flatnonzero(~mask))] if not mask.all() else []
    routed = [second(rows.take(np.flatnonzero(mask)))] if mask.any() else []
    order = np.argsort(np.concatenate([np.flatnonzero(~mask), np.flatnonzero(mask)]))
    merged = take(_concatenated((*kept, *routed)), order)
    # Documents are numbered in the order of all rows.
    return replace(merged, model="hybrid", clusters=documents(rows))


def take(table: Predictions, indices: NDArray[np.int64]) -> Predictions:
    """Return the predictions of the rows at `indices`, in that order."""

    def pick(column: Sequence[T]) -> tuple[T, ...]:
        return tuple(column[index] for index in indices)

    return Predictions(
        model=table.model,
        row_ids=pick(table.row_ids),
        labels=pick(table.labels),
        outputs=pick(table.outputs),
        scores=table.scores[indices],
        confidences=table.confidences[indices],
        calibrated=table.calibrated[indices],
        groups={name: pick(values) for name, values in table.groups.items()},
        measures={name: values[indices] for name, values in table.measures.items()},
        clusters=None if table.clusters is None else pick(table.clusters),
        logprobs=None if table.logprobs is None else pick(table.logprobs),
    )


def _concatenated(tables: Sequence[Predictions]) -> Predictions:
    """Return the predictions of all tables, with the measures that all of them have and without clusters."""
    with_logprobs = any(table.logprobs is not None for table in tables)  # a part without a language model has none
    return Predictions(
        model=tables[0].model,
        row_ids=tuple(row for table in tables for row in table.row_ids),
        labels=tuple(label for table in tables for label in table.labels),
        outputs=tuple(output for table in tables for output in table.outputs),
        scores=np.concatenate([table.scores for table in tables]),
        confidences=np.concatenate([table.confidences for table in tables]),
        calibrated=np.concatenate([table.calibrated for table in tables]),
        groups={name: tuple(value for table in tables for value in table.groups[name]) for name in tables[0].groups},
        measures={
            name: np.concatenate([table.measures[name] for table in tables])
            for name in tables[0].measures
            if all(name in table.measures for table in tables)
        },
        logprobs=tuple(table.logprobs_of(row) for table in tables for row in range(len(table)))
        if with_logprobs
        else None,
    )
