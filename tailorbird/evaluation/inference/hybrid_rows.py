"""Predict rows with a hybrid: each part predicts only the rows that it answers."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from tailorbird.data.copies import documents
from tailorbird.data.rows import Rows
from tailorbird.evaluation.hybrid import merged
from tailorbird.evaluation.predictions import Predictions
from tailorbird.registry.hybrid_routing import IntArray, PartName, Routing, answer_rows


def predict_hybrid(
    routing: Routing, *, rows: Rows, predict: Callable[[PartName, Rows], Predictions]
) -> Predictions:
    """Return the predictions of a hybrid, from a function that predicts rows with one of its
    parts."""
    tables: dict[PartName, Predictions] = {}

    def answer(name: PartName, indices: IntArray) -> Sequence[int]:
        tables[name] = predict(name, rows.take(indices))
        return range(len(indices))  # positions in the table

    groups = None
    if routing.column is not None:
        groups = rows.groups[routing.column]
    answers = answer_rows(
        routing,
        len(rows),
        answer=answer,
        confidence=lambda position: tables["first"].calibrated[position],
        groups=groups,
    )
    first = [position for name, position in answers if name == "first"]
    second = [position for name, position in answers if name == "second"]
    either = next(iter(tables.values()))
    table = merged(
        tables.get("first", either).take(first),
        tables.get("second", either).take(second),
        to_second=np.array([name == "second" for name, _ in answers]),
    )
    # Documents are numbered in the order of all rows.
    return replace(table, clusters=documents(rows))
