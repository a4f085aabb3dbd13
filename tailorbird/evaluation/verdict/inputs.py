"""The predictions and measurements from which a verdict is computed and recomputed."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tailorbird.evaluation.gates.cost import ServingCosts, TrainingUsage
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused, align
from tailorbird.evaluation.verdict.protocol import TestProtocol

CHANGED_SETS = ("counterfactual", "noise")
"""Sets of changed rows that gates need: a name, sex or age swapped; typing errors, changed case and white space."""

SUITE_PREFIX = "suite-"
"""A suite is a set with this prefix before its name."""


@dataclass(frozen=True)
class VerdictInputs:
    """The inputs of `decide` in addition to the protocol."""

    incumbent: ModelPredictions
    candidate: ModelPredictions
    test_sha256: str
    leaks: tuple[str, ...] = ()
    access_number: int = 1  # number of the access to these test rows, from 1
    num_rows_seen: int = 0  # test rows that are in an earlier access
    contenders: Mapping[str, ModelPredictions] = field(default_factory=dict)
    """The further contenders by role, best on validation first."""
    hybrid: FrozenHybrid | None = None  # fitted on validation before the test rows are read
    hybrid_parts: Mapping[str, ModelPredictions] = field(default_factory=dict)
    """Parts of the hybrid that are no members of the family, by role."""
    costs: ServingCosts | None = None  # resources for serving each model by role; None if not measured
    training: TrainingUsage = field(default_factory=TrainingUsage)  # resources of the training, with the sweep
    accepted_loss: float = 0.0  # losses accepted for lower cost since the last proven champion
    trained_on: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Ids of the test rows that the model in a role was trained on; see `without_trained_rows`."""
    unknown_training: tuple[str, ...] = ()  # roles of the models whose training rows are unknown

    @property
    def models(self) -> Mapping[str, ModelPredictions]:
        """All models with predictions, by role."""
        members = {"incumbent": self.incumbent, "candidate": self.candidate, **self.contenders}
        return members | dict(self.hybrid_parts)


def model_predictions(role: str, tables: Mapping[str, Predictions]) -> ModelPredictions:
    """Return the predictions of the model in a role; a table of changed rows or of a suite is named `<role>_<set>`."""
    sets = [name.removeprefix(f"{role}_") for name in tables if name.startswith(f"{role}_{SUITE_PREFIX}")]
    changed = {name: tables[f"{role}_{name}"] for name in (*CHANGED_SETS, *sets) if f"{role}_{name}" in tables}
    return ModelPredictions(tables[role], changed)


def without_trained_rows(inputs: VerdictInputs) -> VerdictInputs:
    """Return the inputs without the test rows that a model was trained on, and without the changed rows of these.

    A model is right on rows that it was trained on more often than on others, so no model is compared on them. Suites
    are not changed. Raises VerdictRefused if no row remains.
    """
    trained = frozenset[str]().union(*inputs.trained_on.values())

    def without(model: ModelPredictions) -> ModelPredictions:
        changed = {name: table.without(trained) for name, table in model.changed.items() if name in CHANGED_SETS}
        return ModelPredictions(model.clean.without(trained), {**model.changed, **changed})

    if not trained:
        return inputs
    remaining = replace(
        inputs,
        incumbent=without(inputs.incumbent),
        candidate=without(inputs.candidate),
        contenders={role: without(model) for role, model in inputs.contenders.items()},
        hybrid_parts={role: without(model) for role, model in inputs.hybrid_parts.items()},
    )
    if not len(remaining.incumbent.clean):
        raise VerdictRefused("the compared models were trained on all test rows; add test rows that are new to them")
    return remaining


def trained_rows_sentences(
    trained_on: Mapping[str, Collection[str]], *, unknown: Sequence[str], num_rows: int
) -> tuple[str, ...]:
    """Return a sentence for each model that was trained on test rows, or whose training rows are unknown, by role."""
    sentences = [
        f"the {role} was trained on {len(rows):,} of the {num_rows:,} test rows ({len(rows) / num_rows:.1%}), on which "
        "no model is compared"
        for role, rows in trained_on.items()
        if rows
    ]
    sentences += [
        f"the training rows of the {role} are unknown: if test rows are among them, its score is too high"
        for role in unknown
    ]
    return tuple(sentences)


def require_same_rows(inputs: VerdictInputs, *, protocol: TestProtocol) -> None:
    """Raise VerdictRefused (rule 1) if test rows changed, rows are misaligned, or scores are invalid."""
    if inputs.test_sha256 != protocol.test_sha256:
        hashes = f"their sha256 is {inputs.test_sha256}, but the protocol has {protocol.test_sha256}"
        raise VerdictRefused(f"the test rows changed: {hashes}; restore the test rows, or start a new run")
    models = tuple(model.clean for model in inputs.models.values())
    align(*models)
    if len(models[0]) != protocol.num_test_rows:
        raise VerdictRefused(
            f"{len(models[0])} rows have predictions, but the protocol has {protocol.num_test_rows} test rows; predict "
            "all of them"
        )
    known = set(models[0].row_ids)
    for name, gate in zip(CHANGED_SETS, (protocol.gates.counterfactual, protocol.gates.robustness), strict=True):
        all_changed = [model.changed.get(name) for model in inputs.models.values()]
        if gate is not None and None in all_changed:
            raise ValueError(f"the recipe has a gate on {name} rows; give all models' predictions for these rows")
        if name == "noise" and any(table is not None and len(table) != len(models[0]) for table in all_changed):
            raise VerdictRefused(
                "the noise set must have one row per test row; create the set again from all test rows"
            )
        tables = [table for table in all_changed if table is not None and len(table)]
        if len(tables) > 1:
            align(*tables)
            foreign = next((row for row in tables[0].row_ids if row.rpartition("|")[0] not in known), None)
            if foreign is not None:
                raise VerdictRefused(f"the {name} row {foreign!r} has no test row as its source; create the set again")
            models = (*models, *tables)
    for model in models:
        require_valid_scores(model)
    for name in protocol.suites:
        answers = [model.changed.get(f"{SUITE_PREFIX}{name}") for model in inputs.models.values()]
        if None in answers:
            raise ValueError(f"the recipe has the suite {name}; give all models' answers to it")
        _require_same_suite(name, [table for table in answers if table is not None])


def _require_same_suite(name: str, tables: list[Predictions]) -> None:
    """Raise VerdictRefused if answers to a suite are not to the same rows, or a score is not in [0, 1].

    NaN is the score of a row that a model cannot answer.
    """
    for table in tables:
        if (table.row_ids, table.labels) != (tables[0].row_ids, tables[0].labels):
            raise VerdictRefused(f"{table.model} and {tables[0].model} answer different rows of the suite {name}")
        if not len(table) or ((table.scores < 0) | (table.scores > 1)).any():
            raise VerdictRefused(f"{table.model} has no scores from 0 to 1 for the suite {name}; answer it again")


def require_valid_scores(model: Predictions) -> None:
    """Raise VerdictRefused if a row's score is not 1 for the label and 0 for anything else."""
    right = np.array(model.labels, dtype=object) == np.array(model.outputs, dtype=object)
    wrong = np.flatnonzero(model.scores != right)
    if wrong.size:
        row = f"{model.scores[wrong[0]]} at row {model.row_ids[wrong[0]]!r}"
        raise VerdictRefused(
            f"{model.model} has the score {row}; a score must be 1 if the output equals the label, and 0 otherwise"
        )
