"""A model's predictions for the rows of a split: the table from which verdicts are computed and
recomputed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailorbird.config.metrics import METRICS

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_PREFIX = "group:"
MEASURE_PREFIX = "measure:"
CLUSTER = "cluster"
LOGPROBS = "logprobs"
TRAINING_TEXT = "contains_training_text"
"""Measure of answers to a suite: 1 in all rows if the model, or a part of a hybrid, stores training
rows as text."""
COLUMNS = {
    "row_id": "row_ids",
    "label": "labels",
    "output": "outputs",
    "score": "scores",
    "confidence": "confidences",
    "calibrated": "calibrated",
}
"""Columns of a table by name, with their fields."""
ROW_COLUMNS = (*COLUMNS.values(), "groups", "measures", "clusters", "logprobs")
"""Fields of `Predictions` with a value, or several, for each row."""


class VerdictRefused(ValueError):
    """The predictions cannot be compared, so there is no verdict."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """One model's predictions for a set of rows, in row order and without the rows' text."""

    model: str  # kind of the model, for example `probe` or `full`
    row_ids: tuple[str, ...]  # row ids, unique in the set
    labels: tuple[str, ...]  # true labels; (chat) sha256 of the words of the reference answer
    outputs: tuple[str, ...]  # predicted labels; (chat) sha256 of the words of the answer
    scores: NDArray[np.float64]  # [N] 1.0 if the output equals the label, else 0.0
    confidences: NDArray[np.float64]
    """[N] highest class probability before temperature scaling; (chat) exp of the mean token
    log-probability. NaN for all rows if the model is an endpoint that returns no log-probabilities.
    """
    calibrated: NDArray[np.float64]
    """[N] The same after temperature scaling; (chat) equal to `confidences`."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Group columns by name, one value per row."""
    measures: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """[N] further per-row scores by name (chat only): `token_f1`, `rouge_l`, and the metrics of
    `evaluation.answers`."""
    clusters: tuple[str, ...] | None = None
    """Cluster of each row; rows of the same document or with the same text are not independent."""
    logprobs: tuple[tuple[float, ...], ...] | None = None
    """(language models only) Log-probability of each token of a row's answer, the end-of-turn token
    included."""

    def __post_init__(self) -> None:
        for name in ("scores", "confidences", "calibrated"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        measures = {name: np.array(values, np.float64) for name, values in self.measures.items()}
        object.__setattr__(self, "measures", measures)

        columns: list[Sized] = [self.labels, self.outputs, self.scores, self.confidences]
        columns += [self.calibrated, *self.groups.values(), *measures.values()]
        columns += [column for column in (self.clusters, self.logprobs) if column is not None]
        lengths = {len(column) for column in columns}
        assert lengths == {len(self)}, f"{self.model}: {lengths} values for {len(self)} row ids"

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, rows: Sequence[int]) -> Predictions:
        """Return the predictions for the rows at these positions, in that order."""
        changes = {}
        for name in ROW_COLUMNS:
            column = getattr(self, name)
            if column is not None:
                changes[name] = _picked(column, rows)
        return replace(self, **changes)

    def without(self, row_ids: Set[str]) -> Predictions:
        """Return the predictions without some test rows, and without the changed rows (`<row
        id>|...`) of these."""
        positions = []
        for position, row_id in enumerate(self.row_ids):
            if row_ids.isdisjoint((row_id, row_id.rpartition("|")[0])):
                positions.append(position)
        return self.take(positions)

    def per_row(self, metric: str) -> NDArray[np.float64]:
        """Return the per-row scores [N] for a metric that is a mean over rows; raise VerdictRefused
        if missing."""
        if metric in METRICS and METRICS[metric].is_share:
            return self.scores
        if metric not in self.measures:
            known = ", ".join(self.measures) or "only whether each row is right"
            raise VerdictRefused(f"{self.model} has no scores for {metric!r}; it has {known}")
        return self.measures[metric]

    def logprobs_of(self, row: int) -> tuple[float, ...]:
        """Return the log-probabilities of the tokens of a row's answer; none without a language
        model."""
        if self.logprobs is None:
            return ()
        return self.logprobs[row]

    def to_table(self) -> pa.Table:
        """Return an Arrow table with `COLUMNS`, `group:<name>`, `measure:<name>` and, if known,
        `cluster`, `logprobs`.

        The schema metadata contains the name of the model.
        """
        import pyarrow as pa

        columns = {}
        for name, field_name in COLUMNS.items():
            values = getattr(self, field_name)
            kind = None if isinstance(values, np.ndarray) else pa.string()
            columns[name] = pa.array(values, kind)
        for name, groups in self.groups.items():
            columns[GROUP_PREFIX + name] = pa.array(groups, pa.string())
        for name, values in self.measures.items():
            columns[MEASURE_PREFIX + name] = pa.array(values)
        if self.clusters is not None:
            columns[CLUSTER] = pa.array(self.clusters, pa.string())
        if self.logprobs is not None:
            columns[LOGPROBS] = pa.array(self.logprobs, pa.list_(pa.float32()))
        return pa.table(columns).replace_schema_metadata({"model": self.model})

    @classmethod
    def from_table(cls, table: pa.Table) -> Predictions:
        """Read a table that `to_table` wrote; raise ValueError for a table without its columns."""
        names = table.column_names
        missing = [name for name in COLUMNS if name not in names]
        model = (table.schema.metadata or {}).get(b"model")
        if missing or model is None:
            raise ValueError(
                f"not a table of predictions: it has the columns {names} and the metadata "
                f"{table.schema.metadata}; give a table that Predictions.to_table wrote"
            )

        columns: dict[str, Any] = {"groups": {}, "measures": {}}
        for name in names:
            values = tuple(table[name].to_pylist())
            if name.startswith(GROUP_PREFIX):
                columns["groups"][name.removeprefix(GROUP_PREFIX)] = values
            elif name.startswith(MEASURE_PREFIX):
                columns["measures"][name.removeprefix(MEASURE_PREFIX)] = values
            elif name == CLUSTER:
                columns["clusters"] = values
            elif name == LOGPROBS:
                columns["logprobs"] = tuple(map(tuple, values))
            elif name in COLUMNS:
                columns[COLUMNS[name]] = values
        return cls(model=model.decode(), **columns)


def joined_predictions(tables: Sequence[Predictions], *, model: str) -> Predictions:
    """Return the rows of all tables, with the measures that every table has.

    Rows of a table without log-probabilities have none if another table has them.
    """
    columns: dict[str, Any] = {}
    for name in ROW_COLUMNS:
        parts = []
        for table in tables:
            part = getattr(table, name)
            parts.append(((),) * len(table) if part is None else part)
        columns[name] = _joined(parts)
    for name in ("clusters", "logprobs"):
        if all(getattr(table, name) is None for table in tables):
            columns[name] = None
    return Predictions(model=model, **columns)


def _picked(column: Any, rows: Sequence[int]) -> Any:
    """Return the values of a column, or of each column of a mapping, at these positions."""
    if isinstance(column, Mapping):
        return {name: _picked(values, rows) for name, values in column.items()}
    if isinstance(column, np.ndarray):
        return column[np.array(rows, dtype=np.int64)]
    return tuple(column[row] for row in rows)


def _joined(parts: Sequence[Any]) -> Any:
    """Return the values of all parts of a column, or of each column that all mappings have."""
    if isinstance(parts[0], Mapping):
        common = [name for name in parts[0] if all(name in part for part in parts)]
        return {name: _joined([part[name] for part in parts]) for name in common}
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    return tuple(chain.from_iterable(parts))


def align(first: Predictions, *tables: Predictions) -> None:
    """Check that all tables have the same rows, in the same order, with the same labels and finite
    scores.

    Raises VerdictRefused with the names of the models.
    """
    if not len(first):
        raise VerdictRefused(f"{first.model} has no predictions; predict the test rows first")
    row_id, count = Counter(first.row_ids).most_common(1)[0]
    if count > 1:
        raise VerdictRefused(
            f"{first.model} has row id {row_id!r} more than once; row ids must be unique"
        )

    for table in (first, *tables):
        for what, values in {"score": table.scores, **table.measures}.items():
            invalid = np.flatnonzero(~np.isfinite(values))
            if invalid.size:
                position = invalid[0]
                raise VerdictRefused(
                    f"{table.model} has the {what} {values[position]} at row "
                    f"{table.row_ids[position]!r}; scores must be finite"
                )

    for other in tables:
        if first.row_ids != other.row_ids or first.labels != other.labels:
            raise VerdictRefused(
                f"{first.model} with {len(first)} rows and {other.model} with {len(other)} rows "
                "differ in their row ids or labels; predict the same rows in the same order"
            )


@dataclass(frozen=True)
class ModelPredictions:
    """One model's predictions for the test rows, and for sets of changed rows by set name."""

    clean: Predictions
    changed: Mapping[str, Predictions] = field(default_factory=dict)
