"""What a verdict is computed from, and later recomputed from: tables of predictions, measurements, what was found."""

from dataclasses import dataclass

import numpy as np

from tailorbird.evaluation.gates.cost import CpuRounds
from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused, align
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.registry.routing import Routing

CHANGED_SETS = ("counterfactual", "noise")
"""The changed rows that gates ask for: a name, sex or age swapped; typing errors, case and white space."""


@dataclass(frozen=True)
class VerdictInputs:
    """All that `verdict.decide` reads besides the question."""

    incumbent: ModelPredictions
    candidate: ModelPredictions
    reference: Predictions | None
    """TF-IDF's answers on the test rows; None of a chat task."""
    test_sha256: str
    leaks: tuple[str, ...] = ()
    look: int = 1
    """Which look of this recipe at these test rows it is."""
    routing: Routing | None = None
    """The hybrid, as frozen on validation before test was read."""
    cpu: CpuRounds | None = None
    """What both models cost to serve."""
    training_cpu_s: float = 0.0
    """CPU-seconds of the training that made the candidate, sweep included."""


def require_same_rows(case: VerdictInputs, *, question: TestProtocol) -> None:
    """Rule 1: raises VerdictRefused where test rows changed, rows are misaligned, or scores are not what they must."""
    if case.reference is None and question.has_reference:
        raise ValueError("a classification's verdict needs the TF-IDF reference; give its predictions on the test rows")
    if case.test_sha256 != question.test_sha256:
        raise VerdictRefused(
            f"the test rows changed: their sha256 is {case.test_sha256}, the question asks about "
            f"{question.test_sha256}; restore the test rows, or ask a new question in a new run"
        )
    models: tuple[Predictions, ...] = (case.incumbent.clean, case.candidate.clean)
    models = models if case.reference is None else (*models, case.reference)
    align(*models)
    if len(models[0]) != question.num_test_rows:
        raise VerdictRefused(
            f"{len(models[0])} rows were predicted, the question asks about {question.num_test_rows}; predict them all"
        )
    known = set(models[0].row_ids)
    for name, wanted in zip(CHANGED_SETS, (question.gates.counterfactual, question.gates.robustness), strict=True):
        pair = [side.changed.get(name) for side in (case.incumbent, case.candidate)]
        if wanted is not None and None in pair:
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
    """Raises VerdictRefused where a row's score is not 1 for the label and 0 for anything else."""
    right = np.array(model.labels, dtype=object) == np.array(model.outputs, dtype=object)
    wrong = np.flatnonzero(model.scores != right)
    if wrong.size:
        raise VerdictRefused(
            f"{model.model} has the score {model.scores[wrong[0]]} at row {model.row_ids[wrong[0]]!r}; for "
            "accuracy it must be 1 where the output is the label, else 0"
        )
