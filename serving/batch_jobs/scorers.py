"""The rows and the output columns of a batch: one `Scorer` per task."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from serving.batch_jobs.schema import Part
from serving.engines.classify import Prediction
from serving.offline import ChatAnswer, InputRow
from tailorbird.config.data import DataConfig
from tailorbird.data.parquet import conversations_of, groups_of, texts_of

if TYPE_CHECKING:
    from tailorbird.registry.versions import ModelVersion

Columns = Mapping[str, pa.Array]


@dataclass(frozen=True)
class Scorer:
    """The columns and the defaults of one task."""

    # rows in a worker's memory, and rows to repeat after a failure: seconds to a minute of work
    part_rows: int
    default_column: str
    columns: "Callable[[Sequence[Any], ModelVersion], Columns]"
    """Return the answers of a version in row order, by output column."""


def input_rows(
    table: pa.Table, part: Part, *, column: str, group_column: str | None = None
) -> list[InputRow]:
    """Return the rows of a part, whose `column` has texts or, for chat models, prompts or
    conversations.

    Raises DataError, which names the row, for other values.
    """
    if pa.types.is_list(table.schema.field(column).type):
        weighted = conversations_of(table, column, uri=part.uri, first=part.start)
        turns = [row.turns for row in weighted]
    else:
        turns = [
            (("user", text),) for text in texts_of(table, column, uri=part.uri, first=part.start)
        ]
    names = [f"{part.uri}: row {part.start + row}" for row in range(len(turns))]
    groups: Sequence[str | None] = [None] * len(turns)
    if group_column is not None:
        groups = groups_of(table, group_column, uri=part.uri, first=part.start)
    return [InputRow(*row) for row in zip(turns, names, groups, strict=True)]


def _labels(predictions: Sequence[Prediction], version: "ModelVersion") -> Columns:
    """Return labels and scores. The label of a text is null if the endpoint refuses it or names no
    class."""
    known = frozenset(version.classes)
    labels = pa.array(
        [each.label if each.label in known else None for each in predictions], pa.string()
    )
    if version.integer_labels:
        typed = (version.typed_label(prediction.label) for prediction in predictions)
        labels = pa.array(
            [label if isinstance(label, int) else None for label in typed], pa.int64()
        )
    scores = pa.array([prediction.known_score for prediction in predictions], pa.float32())
    return {"label": labels, "score": scores}


def _answers(answers: Sequence[ChatAnswer], version: "ModelVersion") -> Columns:  # noqa: ARG001
    """Return answers. That to a row is null if an endpoint refuses it, and `finish_reason` is then
    the error code."""
    return {
        "answer": pa.array([answer.text for answer in answers], pa.string()),
        "finish_reason": pa.array([answer.finish_reason for answer in answers], pa.string()),
        "confidence": pa.array([answer.confidence for answer in answers], pa.float32()),
    }


SCORERS = {
    "classification": Scorer(1 << 12, DataConfig.model_fields["text"].default, _labels),
    "chat": Scorer(1 << 8, DataConfig.model_fields["prompt"].default, _answers),
}
"""Scorers, by the version's task."""
