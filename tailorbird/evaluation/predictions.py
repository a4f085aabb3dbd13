"""A model's predictions for the rows of a split: the table from which verdicts are computed and
recomputed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set, Sized
from dataclasses import dataclass, field, replace
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
COLUMNS = ("row_id", "label", "output", "score", "confidence", "calibrated")


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
    calibrated: NDArray[
        np.float64
    ]  # [N] the same after temperature scaling; (chat) equal to `confidences`
    groups: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # group columns by name, one value per row
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
        names = ("labels", "outputs", "scores", "confidences", "calibrated")
        columns: dict[str, Sized] = {name: getattr(self, name) for name in names}
        columns |= {f"group {name}": values for name, values in self.groups.items()}
        columns |= measures
        columns |= {} if self.clusters is None else {"clusters": self.clusters}
        columns |= {} if self.logprobs is None else {"logprobs": self.logprobs}
        for name, column in columns.items():
            if len(column) != len(self.row_ids):
                raise ValueError(
                    f"predictions of {self.model}: {len(column)} {name} for {len(self.row_ids)} "
                    "row ids; give one per row"
                )

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, rows: Sequence[int]) -> Predictions:
        """Return the predictions for the rows at these positions, in that order."""
        positions = np.array(rows, dtype=np.int64)

        def pick(column: Sequence[Any]) -> tuple[Any, ...]:
            return tuple(column[row] for row in rows)

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
            clusters=None if self.clusters is None else pick(self.clusters),
            logprobs=None if self.logprobs is None else pick(self.logprobs),
        )

    def without(self, row_ids: Set[str]) -> Predictions:
        """Return the predictions without some test rows, and without the changed rows (`<row
        id>|...`) of these."""
        kept = [
            row not in row_ids and row.rpartition("|")[0] not in row_ids for row in self.row_ids
        ]
        return self.take(np.flatnonzero(kept).tolist())

    def per_row(self, metric: str) -> NDArray[np.float64]:
        """Return the per-row scores [N] for a metric that is a mean over rows; raise VerdictRefused
        if missing."""
        if metric in METRICS and METRICS[metric].is_share:
            return self.scores
        if metric not in self.measures:
            of_all = [
                name for name, spec in METRICS.items() if spec.is_share or spec.is_over_classes
            ]
            allowed = ", ".join([*of_all, *self.measures])
            raise VerdictRefused(f"{self.model} has no scores for {metric!r}; allowed: {allowed}")
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
        columns |= {
            GROUP_PREFIX + name: pa.array(values, pa.string())
            for name, values in self.groups.items()
        }
        columns |= {
            MEASURE_PREFIX + name: pa.array(values) for name, values in self.measures.items()
        }
        columns |= {} if self.clusters is None else {CLUSTER: pa.array(self.clusters, pa.string())}
        if self.logprobs is not None:
            columns[LOGPROBS] = pa.array(self.logprobs, pa.list_(pa.float32()))
        return pa.table(columns).replace_schema_metadata({"model": self.model})

    @classmethod
    def from_table(cls, table: pa.Table) -> Predictions:
        """Read a table that `to_table` wrote; raise ValueError for missing or unknown columns or a
        missing name."""
        names = table.column_names
        missing = [name for name in COLUMNS if name not in names]
        known = (GROUP_PREFIX, MEASURE_PREFIX)
        foreign = [
            name
            for name in names
            if name not in (*COLUMNS, CLUSTER, LOGPROBS) and not name.startswith(known)
        ]
        model = (table.schema.metadata or {}).get(b"model")
        if missing or foreign or model is None:
            raise ValueError(
                f"not a table of predictions: missing columns {missing}, unknown columns "
                f"{foreign}, model name {'missing' if model is None else 'present'}; give a table "
                "that Predictions.to_table wrote"
            )

        def texts(name: str) -> tuple[str, ...]:
            return tuple(table[name].to_pylist())

        def numbers(name: str) -> NDArray[np.float64]:
            return np.array(
                table[name].to_pylist(), dtype=np.float64
            )  # `to_numpy` would import pandas

        groups = [name for name in names if name.startswith(GROUP_PREFIX)]
        measures = [name for name in names if name.startswith(MEASURE_PREFIX)]
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
            clusters=texts(CLUSTER) if CLUSTER in names else None,
            logprobs=tuple(map(tuple, table[LOGPROBS].to_pylist())) if LOGPROBS in names else None,
        )


def align(first: Predictions, *others: Predictions) -> None:
    """Check that all tables have the same rows, in the same order, with the same labels and finite
    scores.

    Raises VerdictRefused with the names of the models and the first invalid row.
    """
    if not len(first):
        raise VerdictRefused(f"{first.model} has no predictions; predict the test rows first")
    repeated = [row_id for row_id, count in Counter(first.row_ids).items() if count > 1]
    if repeated:
        raise VerdictRefused(
            f"{first.model} has row id {repeated[0]!r} more than once; row ids must be unique"
        )
    for predictions in (first, *others):
        for what, values in {"score": predictions.scores, **predictions.measures}.items():
            bad = np.flatnonzero(~np.isfinite(values))
            if bad.size:
                row = f"{values[bad[0]]} at row {predictions.row_ids[bad[0]]!r}"
                raise VerdictRefused(
                    f"{predictions.model} has the {what} {row}; scores must be finite"
                )
    for other in others:
        pair = f"{first.model} and {other.model}"
        if len(first) != len(other):
            raise VerdictRefused(
                f"{pair} have predictions for {len(first)} and {len(other)} rows; predict the same "
                "rows"
            )
        for what, ours, theirs in (
            ("row ids", first.row_ids, other.row_ids),
            ("labels", first.labels, other.labels),
        ):
            if ours != theirs:
                at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
                raise VerdictRefused(
                    f"{pair} differ in their {what.replace('_', ' ')}, first at position {at}: "
                    f"{ours[at]!r} and {theirs[at]!r}; predict the same rows in the same order"
                )


@dataclass(frozen=True)
class ModelPredictions:
    """One model's predictions for the test rows, and for sets of changed rows by set name."""

    clean: Predictions
    changed: Mapping[str, Predictions] = field(default_factory=dict)
