"""The predictions and measurements from which a verdict is computed and recomputed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np

from tailorbird.evaluation.gates.cost import ServingCosts, TrainingUsage
from tailorbird.evaluation.hybrid import FrozenHybrid
from tailorbird.evaluation.predictions import ModelPredictions, Predictions, VerdictRefused, align
from tailorbird.evaluation.statistics.headroom import Headroom
from tailorbird.evaluation.verdict.formatting import named
from tailorbird.evaluation.verdict.protocol import TestProtocol
from tailorbird.registry.test_set_ledger import RowUse

CHANGED_SETS = ("counterfactual", "noise")
"""Sets of changed rows that gates need: a name, sex or age swapped; typing errors, changed case and
white space."""

SUITE_PREFIX = "suite-"
"""A suite is a set with this prefix before its name."""


FIRST_LOOK = RowUse(number=1, num_rows=0, num_seen=0, alpha_share=1.0)
"""A look at test rows of which none is in an earlier look."""


@dataclass(frozen=True)
class Anchor:
    """The last champion that was proven better than its predecessor.

    A model that replaces another for its cost must be non-inferior to it.
    """

    predictions: Predictions | None  # None if it cannot predict today's rows
    problem: str = ""  # why it cannot predict


@dataclass(frozen=True)
class TrainedRows:
    """The test rows that compared models were trained or selected on; no model is compared on
    them."""

    rows: Mapping[str, tuple[str, ...] | None] = field(default_factory=dict)
    """Ids of these rows by role; None for a model whose training rows are unknown."""

    @property
    def unknown(self) -> tuple[str, ...]:
        """The roles of the models whose training rows are unknown."""
        return tuple(role for role, rows in self.rows.items() if rows is None)

    @property
    def excluded(self) -> frozenset[str]:
        """The rows on which no model is compared: those that a model in any role was trained on."""
        return frozenset(chain.from_iterable(rows or () for rows in self.rows.values()))

    def sentences(self, num_test: int) -> tuple[str, ...]:
        """Return a sentence for each model that was trained on some of the test rows, or may have
        been."""
        sentences = [
            f"{named(role)} was trained on {len(rows):,} of the {num_test:,} test rows "
            f"({len(rows) / num_test:.1%}), on which no model is compared"
            for role, rows in self.rows.items()
            if rows
        ]
        sentences += [
            f"the training rows of {named(role)} are unknown: if test rows are among them, its "
            "score is too high"
            for role in self.unknown
        ]
        return tuple(sentences)

    def without(
        self, tables: Mapping[str, Predictions], *, roles: Iterable[str]
    ) -> dict[str, Predictions]:
        """Return the tables by name, those of the test rows (named by `roles`) without these
        rows."""
        compared = {role: tables[role].without(self.excluded) for role in roles}
        return {**tables, **compared}


@dataclass(frozen=True)
class VerdictInputs:
    """The inputs of `reach_verdict` in addition to the protocol."""

    models: Mapping[str, ModelPredictions]
    """Predictions by role: `incumbent`, `candidate` if a model was trained, then the other models
    without fine-tuning, best on validation first. The hybrid is computed from its parts."""
    test_sha256: str
    replacing: tuple[str, ...] = ()  # roles of the other models that may replace the incumbent
    hybrid: FrozenHybrid | None = None  # fitted on validation before the test rows are read
    anchor: Anchor | None = None  # None if the incumbent is the anchor, or there is no champion
    costs: ServingCosts | None = (
        None  # resources for serving each model by role; None if not measured
    )
    training: TrainingUsage = field(
        default_factory=TrainingUsage
    )  # resources of the training, with the sweep
    headroom: Headroom | None = None  # of the incumbent on validation; None if a model was trained
    look: RowUse = FIRST_LOOK  # how much the test rows were used before
    trained_rows: TrainedRows = TrainedRows()  # they leave the comparison

    @property
    def incumbent(self) -> ModelPredictions:
        return self.models["incumbent"]

    @property
    def candidate(self) -> ModelPredictions:
        return self.models["candidate"]


def model_predictions(role: str, tables: Mapping[str, Predictions]) -> ModelPredictions:
    """Return the predictions of the model in a role; a table of changed rows or of a suite is named
    `<role>_<set>`."""
    prefix = f"{role}_"
    sets = {
        name.removeprefix(prefix): table
        for name, table in tables.items()
        if name.startswith(prefix)
    }
    changed = {
        name: table
        for name, table in sets.items()
        if name in CHANGED_SETS or name.startswith(SUITE_PREFIX)
    }
    return ModelPredictions(tables[role], changed)


def without_trained_rows(inputs: VerdictInputs) -> VerdictInputs:
    """Return the inputs without the test rows that a model was trained on, and without the changed
    rows of these.

    A model is right on rows that it was trained on more often than on others, so no model is
    compared on them. Suites are not changed. Raises VerdictRefused if no row remains.
    """
    trained = inputs.trained_rows.excluded

    def without(model: ModelPredictions) -> ModelPredictions:
        changed = {
            name: table.without(trained)
            for name, table in model.changed.items()
            if name in CHANGED_SETS
        }
        return ModelPredictions(model.clean.without(trained), {**model.changed, **changed})

    if not trained:
        return inputs
    anchor = inputs.anchor
    if anchor is not None and anchor.predictions is not None:
        anchor = replace(anchor, predictions=anchor.predictions.without(trained))
    remaining = replace(
        inputs,
        models={role: without(model) for role, model in inputs.models.items()},
        anchor=anchor,
    )
    if not len(remaining.incumbent.clean):
        raise VerdictRefused(
            "the compared models were trained on all test rows; add test rows that are new to them"
        )
    return remaining


def require_same_rows(inputs: VerdictInputs, *, protocol: TestProtocol) -> None:
    """Raise VerdictRefused if test rows changed, rows are misaligned, or scores are invalid.

    Raise ValueError if predictions that a gate needs are missing.
    """
    if inputs.test_sha256 != protocol.test_sha256:
        hashes = (
            f"their sha256 is {inputs.test_sha256}, but the protocol has {protocol.test_sha256}"
        )
        raise VerdictRefused(
            f"the test rows changed: {hashes}; restore the test rows, or start a new run"
        )
    models = list(inputs.models.values())
    tables = [model.clean for model in models]
    if inputs.anchor is not None and inputs.anchor.predictions is not None:
        tables.append(inputs.anchor.predictions)
    align(*tables)
    if len(tables[0]) != protocol.num_test_rows:
        raise VerdictRefused(
            f"{len(tables[0])} rows have predictions, but the protocol has "
            f"{protocol.num_test_rows} test rows; predict all of them"
        )
    for name in CHANGED_SETS:
        changed = _tables_of(models, name=name, is_required=name in protocol.gates.changed_sets)
        if name == "noise" and any(len(table) != len(tables[0]) for table in changed):
            raise VerdictRefused(
                "the noise set must have one row per test row; create the set again from all test "
                "rows"
            )
        if changed and len(changed[0]):
            align(*changed)
            tables += changed
    for table in tables:
        require_valid_scores(table)
    for name in protocol.suites:
        _require_same_suite(
            name, _tables_of(models, name=f"{SUITE_PREFIX}{name}", is_required=True)
        )


def _tables_of(
    models: list[ModelPredictions], *, name: str, is_required: bool
) -> list[Predictions]:
    """Return the predictions of a set of rows by all models that have them."""
    tables = [model.changed[name] for model in models if name in model.changed]
    if is_required and len(tables) < len(models):
        raise ValueError(
            f"the recipe has a gate on {name} rows; give all models' predictions for these rows"
        )
    return tables


def _require_same_suite(name: str, tables: list[Predictions]) -> None:
    """Raise VerdictRefused if answers to a suite are not to the same rows, or a score is not in [0,
    1].

    NaN is the score of a row that a model cannot answer.
    """
    for table in tables:
        if (table.row_ids, table.labels) != (tables[0].row_ids, tables[0].labels):
            raise VerdictRefused(
                f"{table.model} and {tables[0].model} answer different rows of the suite {name}"
            )
        if not len(table) or ((table.scores < 0) | (table.scores > 1)).any():
            raise VerdictRefused(
                f"{table.model} has no scores from 0 to 1 for the suite {name}; answer it again"
            )


def require_valid_scores(model: Predictions) -> None:
    """Raise VerdictRefused if a row's score is not 1 for the label and 0 for anything else."""
    right = np.array(model.labels, dtype=object) == np.array(model.outputs, dtype=object)
    wrong = np.flatnonzero(model.scores != right)
    if wrong.size:
        row = f"{model.scores[wrong[0]]} at row {model.row_ids[wrong[0]]!r}"
        raise VerdictRefused(
            f"{model.model} has the score {row}; a score must be 1 if the output equals the label, "
            "and 0 otherwise"
        )
