"""Texts of test rows on which candidate and incumbent differ, for a report that may contain
texts."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from tailorbird.config.metrics import row_metric
from tailorbird.data.pii import redact
from tailorbird.data.rows import Rows
from tailorbird.evaluation.predictions import Predictions
from tailorbird.evaluation.report.evidence import ROLES, PairedExample

MAX_CHARACTERS = 400  # of a text in the report
SIDES: tuple[tuple[Literal["candidate", "incumbent"], float], ...] = (
    ("candidate", 1.0),
    ("incumbent", -1.0),
)
"""Better model, and the sign of the difference between the candidate's and the incumbent's
score."""


def paired_examples(
    tables: Mapping[str, Predictions], *, rows: Rows, metric: str, most: int
) -> tuple[PairedExample, ...]:
    """Return up to `most` rows on which the candidate scores higher, then as many on which the
    incumbent does.

    They are evenly spaced among all such rows, so that they are not chosen by their content.
    `metric` is that of the verdict; rows are compared by `row_metric`. Texts are redacted. Empty
    without a candidate.
    """
    candidate = tables.get("candidate")
    if not most or candidate is None:
        return ()

    scores = {role: tables[role].per_row(row_metric(metric)) for role in ROLES}
    position = {row_id: number for number, row_id in enumerate(rows.row_ids)}
    classes = rows.class_labels
    queries = rows.queries

    examples = []
    for better, sign in SIDES:
        differing = np.flatnonzero(sign * (scores["candidate"] - scores["incumbent"]) > 0)
        spaced = np.unique(
            np.linspace(0, len(differing) - 1, min(most, len(differing))).astype(np.int64)
        )
        for row in differing[spaced].tolist():
            row_id = candidate.row_ids[row]
            at = position[row_id]
            label = _shown(rows.labels[at])
            outputs = None
            if classes:
                label = classes[at]
                outputs = {role: tables[role].outputs[row] for role in ROLES}
            example = PairedExample(
                row_id=row_id,
                better=better,
                text=_shown(queries[at]),
                label=label,
                outputs=outputs,
                scores={role: float(scores[role][row]) for role in ROLES},
            )
            examples.append(example)
    return tuple(examples)


def _shown(text: str) -> str:
    redacted = redact(text)
    if len(redacted) <= MAX_CHARACTERS:
        return redacted
    return f"{redacted[:MAX_CHARACTERS]} …"
