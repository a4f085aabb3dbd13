"""Everything a verdict is computed from, and later recomputed from: predictions and measurements."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused, align
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.registry.routing import Routing

CHANGED_SETS = ("counterfactual", "noise")
"""The changed rows that gates ask for: a name, sex or age swapped; typing errors, inputs and white space."""


@dataclass(frozen=True)
class VerdictInputs:
    """Everything `decide` reads besides the protocol."""

    incumbent: ModelPredictions
    candidate: ModelPredictions
    reference: Predictions | None  # predictions of the TF-IDF reference on the test rows; None for a chat task
    test_sha256: str
    leaks: tuple[str, ...] = ()
    access_number: int = 1  # number of this recipe's access to these test rows, from 1
    routing: Routing | None = None  # the hybrid, as fitted on validation before test was read
    cpu: CpuRounds | None = None  # cost of serving both models
    training_cpu_s: float = 0.0  # CPU-seconds of the training that made the candidate, sweep included


def model_predictions(role: str, tables: Mapping[str, Predictions]) -> ModelPredictions:
    """Return one model's tables; a table of changed rows is named `<role>_<set>`."""
    changed = {name: tables[f"{role}_{name}"] for name in CHANGED_SETS if f"{role}_{name}" in tables}
    return ModelPredictions(tables[role], changed)


def require_same_rows(inputs: VerdictInputs, *, protocol: TestProtocol) -> None:
    """Raise VerdictRefused (rule 1) if test rows changed, rows are misaligned, or scores are invalid."""
    if inputs.reference is None and protocol.has_reference:
        raise ValueError("a classification's verdict needs the TF-IDF reference; give its predictions on the test rows")
    if inputs.test_sha256 != protocol.test_sha256:
        hashes = f"their sha256 is {inputs.test_sha256}, the protocol names {protocol.test_sha256}"
        raise VerdictRefused(f"the test rows changed: {hashes}; restore the test rows, or start a new run")
    references = () if inputs.reference is None else (inputs.reference,)
    models: tuple[Predictions, ...] = (inputs.incumbent.clean, inputs.candidate.clean, *references)
    align(*models)
    if len(models[0]) != protocol.num_test_rows:
        raise VerdictRefused(
            f"{len(models[0])} rows were predicted, the protocol names {protocol.num_test_rows}; predict them all"
        )
    known = set(models[0].row_ids)
    for name, gate in zip(CHANGED_SETS, (protocol.gates.counterfactual, protocol.gates.robustness), strict=True):
        pair = [side.changed.get(name) for side in (inputs.incumbent, inputs.candidate)]
        if gate is not None and None in pair:
            raise ValueError(f"the recipe asks for a gate on {name} rows; give both models' predictions of them")
        if name == "noise" and any(table is not None and len(table) != len(models[0]) for table in pair):
            raise VerdictRefused("the noise rows are not one for each test row; make the set again, and leave out none")
        tables = [table for table in pair if table is not None and len(table)]
        if len(tables) == 2:
            align(*tables)
            foreign = next((row for row in tables[0].row_ids if row.rpartition("|")[0] not in known), None)
            if foreign is not None:
                raise VerdictRefused(f"the {name} row {foreign!r} was made from no test row; make the set again")
            models = (*models, *tables)
    for model in models:
        require_valid_scores(model)


def require_valid_scores(model: Predictions) -> None:
    """Raise VerdictRefused if a row's score is not 1 for the label and 0 for anything else."""
    right = np.array(model.labels, dtype=object) == np.array(model.outputs, dtype=object)
    wrong = np.flatnonzero(model.scores != right)
    if wrong.size:
        row = f"{model.scores[wrong[0]]} at row {model.row_ids[wrong[0]]!r}"
        raise VerdictRefused(f"{model.model} has the score {row}; it must be 1 where the output is the label, else 0")
