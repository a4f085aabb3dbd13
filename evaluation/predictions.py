"""What a model answered on each row of a split: the table that a verdict is computed, and later recomputed, from."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_PREFIX = "group:"
COLUMNS = ("row_id", "label", "output", "score", "confidence", "calibrated")


class VerdictRefused(ValueError):
    """Rule 1: the predictions cannot be compared, so there is no verdict; the message says why."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """One model's answers on one set of rows, in the rows' order, without their text."""

    model: str
    """What answered, for example `probe` or `full`."""
    row_ids: tuple[str, ...]
    """Row ids, unique in the set."""
    labels: tuple[str, ...]
    """True labels."""
    outputs: tuple[str, ...]
    """Labels the model gave."""
    scores: NDArray[np.float64]
    """[N] per-row score; for accuracy 1.0 where the output is the label, else 0.0."""
    confidences: NDArray[np.float64]
    """[N] highest class probability, before temperature."""
    calibrated: NDArray[np.float64]
    """[N] highest class probability after the model's temperature."""
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Group columns by name, one value a row."""

    def __post_init__(self) -> None:
        for name in ("scores", "confidences", "calibrated"):
            values = np.array(getattr(self, name), dtype=np.float64)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        columns = {
            name: len(getattr(self, name)) for name in ("labels", "outputs", "scores", "confidences", "calibrated")
        }
        columns |= {f"group {name}": len(values) for name, values in self.groups.items()}
        for name, length in columns.items():
            if length != len(self.row_ids):
                raise ValueError(
                    f"predictions of {self.model}: {length} {name} for {len(self.row_ids)} row ids; give one a row"
                )

    def __len__(self) -> int:
        return len(self.row_ids)

    def to_table(self) -> pa.Table:
        """An Arrow table with `COLUMNS` and `group:<name>` columns; the model's name is in the schema's metadata."""
        import pyarrow as pa

        columns = {
            "row_id": pa.array(self.row_ids, pa.string()),
            "label": pa.array(self.labels, pa.string()),
            "output": pa.array(self.outputs, pa.string()),
            "score": pa.array(self.scores),
            "confidence": pa.array(self.confidences),
            "calibrated": pa.array(self.calibrated),
        }
        columns |= {GROUP_PREFIX + name: pa.array(values, pa.string()) for name, values in self.groups.items()}
        return pa.table(columns).replace_schema_metadata({"model": self.model})

    @classmethod
    def from_table(cls, table: pa.Table) -> Predictions:
        """Reads what `to_table` wrote; ValueError if columns are missing or foreign, or there is no model's name."""
        given = table.column_names
        missing = [name for name in COLUMNS if name not in given]
        foreign = [name for name in given if name not in COLUMNS and not name.startswith(GROUP_PREFIX)]
        model = (table.schema.metadata or {}).get(b"model")
        if missing or foreign or model is None:
            raise ValueError(
                f"not a table of predictions: columns missing {missing}, foreign {foreign}, model's name "
                f"{'missing' if model is None else 'there'}; give a table that Predictions.to_table wrote"
            )
        return cls(
            model=model.decode(),
            row_ids=tuple(table["row_id"].to_pylist()),
            labels=tuple(table["label"].to_pylist()),
            outputs=tuple(table["output"].to_pylist()),
            scores=table["score"].to_numpy(),
            confidences=table["confidence"].to_numpy(),
            calibrated=table["calibrated"].to_numpy(),
            groups={
                name.removeprefix(GROUP_PREFIX): tuple(table[name].to_pylist())
                for name in given
                if name.startswith(GROUP_PREFIX)
            },
        )


def align(first: Predictions, *others: Predictions) -> None:
    """Makes sure that all are predictions of the same rows, in the same order, with the same labels and finite scores.

    Raises VerdictRefused, naming the two models and the first row at fault.
    """
    if not len(first):
        raise VerdictRefused(f"{first.model} has predicted no row; predict the test rows first")
    repeated = [row_id for row_id, count in Counter(first.row_ids).items() if count > 1]
    if repeated:
        raise VerdictRefused(f"{first.model} has row id {repeated[0]!r} more than once; a row counts once")
    for predictions in (first, *others):
        bad = np.flatnonzero(~np.isfinite(predictions.scores))
        if bad.size:
            raise VerdictRefused(
                f"{predictions.model} has the score {predictions.scores[bad[0]]} at row "
                f"{predictions.row_ids[bad[0]]!r}; scores must be finite"
            )
    for other in others:
        pair = f"{first.model} and {other.model}"
        if len(first) != len(other):
            raise VerdictRefused(f"{pair} have predicted {len(first)} and {len(other)} rows; predict the same rows")
        for what, ours, theirs in (
            ("row ids", first.row_ids, other.row_ids),
            ("labels", first.labels, other.labels),
        ):
            if ours != theirs:
                at = next(i for i, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b)
                raise VerdictRefused(
                    f"{pair} differ in their {what}, first at position {at}: {ours[at]!r} and {theirs[at]!r}; "
                    "predict the same rows in the same order"
                )
