"""A model's predictions for the rows of a split: the table from which verdicts are computed and
recomputed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, TypeVar

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
COLUMNS = ("row_id", "label", "output", "score", "confidence", "calibrated")


Value = TypeVar("Value")


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
    """[N] further per-row scores by name (chat only): `token_f1`, `rouge_l`, `log_likelihood`, and
    the metrics of `evaluation.answers`."""
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
        positions = np.array(rows, dtype=np.int64)

        def pick(column: Sequence[Value]) -> tuple[Value, ...]:
            return tuple(column[row] for row in rows)

        clusters = None
        if self.clusters is not None:
            clusters = pick(self.clusters)
        logprobs = None
        if self.logprobs is not None:
            logprobs = pick(self.logprobs)
        return replace(
            self,
            row_ids=pick(self.row_ids),
            labels=pick(self.labels),
            outputs=pick(self.outputs),
            scores=self.scores[positions],
            confidences=self.confidences[positions],
            calibrated=self.calibrated[positions],
            groups={name: pick(values) for name, values in self.groups.items()},
            measures={name: values[positions] for name, values in self.measures.items()},
            clusters=clusters,
            logprobs=logprobs,
        )

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

        columns = {
            "row_id": pa.array(self.row_ids, pa.string()),
            "label": pa.array(self.labels, pa.string()),
            "output": pa.array(self.outputs, pa.string()),
            "score": pa.array(self.scores),
            "confidence": pa.array(self.confidences),
            "calibrated": pa.array(self.calibrated),
        }
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

        def texts(name: str) -> tuple[str, ...]:
            return tuple(table[name].to_pylist())

        def numbers(name: str) -> NDArray[np.float64]:
            # `to_numpy` would import pandas.
            return np.array(table[name].to_pylist(), dtype=np.float64)

        groups = [name for name in names if name.startswith(GROUP_PREFIX)]
        measures = [name for name in names if name.startswith(MEASURE_PREFIX)]
        clusters = None
        if CLUSTER in names:
            clusters = texts(CLUSTER)
        logprobs = None
        if LOGPROBS in names:
            logprobs = tuple(map(tuple, table[LOGPROBS].to_pylist()))
        return cls(
            model=model.decode(),
            row_ids=texts("row_id"),
            labels=texts("label"),
            outputs=texts("output"),
            scores=numbers("score"),
            confidences=numbers("confidence"),
            calibrated=numbers("calibrated"),
            groups={name.removeprefix(GROUP_PREFIX): texts(name) for name in groups},
            measures={name.removeprefix(MEASURE_PREFIX): numbers(name) for name in measures},
            clusters=clusters,
            logprobs=logprobs,
        )


def joined_predictions(tables: Sequence[Predictions], *, model: str) -> Predictions:
    """Return the rows of all tables, with the measures that every table has.

    Rows of a table without log-probabilities have none if another table has them.
    """
    groups = {}
    for name in tables[0].groups:
        groups[name] = _chained(table.groups[name] for table in tables)

    measures = {}
    for name in tables[0].measures:
        if all(name in table.measures for table in tables):
            measures[name] = np.concatenate([table.measures[name] for table in tables])

    clusters = None
    if tables[0].clusters is not None:
        clusters = _chained(table.clusters or () for table in tables)
    logprobs = None
    if any(table.logprobs is not None for table in tables):
        logprobs = _chained(map(table.logprobs_of, range(len(table))) for table in tables)

    return Predictions(
        model=model,
        row_ids=_chained(table.row_ids for table in tables),
        labels=_chained(table.labels for table in tables),
        outputs=_chained(table.outputs for table in tables),
        scores=np.concatenate([table.scores for table in tables]),
        confidences=np.concatenate([table.confidences for table in tables]),
        calibrated=np.concatenate([table.calibrated for table in tables]),
        groups=groups,
        measures=measures,
        clusters=clusters,
        logprobs=logprobs,
    )


def _chained(columns: Iterable[Iterable[Value]]) -> tuple[Value, ...]:
    return tuple(chain.from_iterable(columns))


def align(first: Predictions, *others: Predictions) -> None:
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

    for table in (first, *others):
        for what, values in {"score": table.scores, **table.measures}.items():
            invalid = np.flatnonzero(~np.isfinite(values))
            if invalid.size:
                position = invalid[0]
                raise VerdictRefused(
                    f"{table.model} has the {what} {values[position]} at row "
                    f"{table.row_ids[position]!r}; scores must be finite"
                )

    for other in others:
        pair = f"{first.model} and {other.model}"
        if len(first) != len(other):
            raise VerdictRefused(
                f"{pair} have predictions for {len(first)} and {len(other)} rows; predict the same "
                "rows"
            )
        if first.row_ids != other.row_ids or first.labels != other.labels:
            raise VerdictRefused(
                f"{pair} differ in their row ids or labels; predict the same rows in the same order"
            )


@dataclass(frozen=True)
class ModelPredictions:
    """One model's predictions for the test rows, and for sets of changed rows by set name."""

    clean: Predictions
    changed: Mapping[str, Predictions] = field(default_factory=dict)
