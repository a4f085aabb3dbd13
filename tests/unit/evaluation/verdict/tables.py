"""Predictions with given right answers, and the protocol and inputs of their verdicts."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.evaluation.predictions import ModelPredictions, Predictions
from tailorbird.evaluation.verdict.inputs import VerdictInputs
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tests.unit.evaluation.simulated import KINDS

SHA = "ab" * 32
BoolArray = NDArray[np.bool_]


def predictions(kind: str, right: BoolArray, *, confidence: float = 0.5) -> Predictions:
    """Return one prediction per entry of `right`; every label is `yes`."""
    confidences = np.full(len(right), confidence)
    return Predictions(
        model=kind,
        row_ids=tuple(map(str, range(len(right)))),
        labels=("yes",) * len(right),
        outputs=tuple(np.where(right, "yes", "no").tolist()),
        scores=right.astype(np.float64),
        confidences=confidences,
        calibrated=confidences,
    )


def models(both: int, only_candidate: int, only_incumbent: int, neither: int) -> tuple[Predictions, Predictions]:
    """Return the tables of the incumbent and the candidate with these numbers of rows."""
    cells = np.repeat([0, 1, 2, 3], [both, only_candidate, only_incumbent, neither])
    return predictions("probe", (cells == 0) | (cells == 2)), predictions("full", (cells == 0) | (cells == 1))


def models_in_documents(num_documents: int, *, size: int) -> tuple[Predictions, Predictions]:
    """Return the incumbent's and the candidate's table; three rows are lost and two gained, in different documents."""
    rows = np.arange(num_documents * size)
    documents = tuple(str(row // size) for row in rows)
    incumbent = predictions("probe", ~np.isin(rows, (size * 3, size * 4)))
    candidate = predictions("full", ~np.isin(rows, (0, size, size * 2)))
    return replace(incumbent, clusters=documents), replace(candidate, clusters=documents)


def protocol_for(num_test_rows: int, **changes: Any) -> TestProtocol:
    values = {"metric": "accuracy", "minimum_gain": 0.01, "expected_gain": 0.02, "alpha": 0.05, "test_sha256": SHA}
    values |= {"num_test_rows": num_test_rows, "non_inferiority_margin": 0.01}
    return TestProtocol.model_validate(values | changes)


def inputs_of(incumbent: Predictions, candidate: Predictions, *others: Predictions) -> VerdictInputs:
    """Return the inputs of a verdict; the roles of the others are their kinds, and any may replace the incumbent."""
    tables = {"incumbent": incumbent, "candidate": candidate} | {other.model: other for other in others}
    models = {role: ModelPredictions(table) for role, table in tables.items()}
    return VerdictInputs(models, SHA, replacing=tuple(other.model for other in others))


def inputs_of_right(**right: BoolArray) -> VerdictInputs:
    """Return the inputs of models by role, which are right on these rows."""
    return inputs_of(*(predictions(KINDS.get(role, role), rows) for role, rows in right.items()))
