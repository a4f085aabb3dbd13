"""Predictions of each task: how a model, loaded or of an endpoint, answers inputs."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailorbird.interface.answer import Answer, Input, last_text
from tailorbird.interface.answers import Answers

if TYPE_CHECKING:
    from tailorbird.models.endpoint.completion import EndpointAnswer
    from tailorbird.models.loading import AnyLoaded
    from tailorbird.registry.versions import ModelVersion

BATCH_SIZE = 64
"""Maximum number of texts in a forward pass, as in the service by default."""


@dataclass(frozen=True)
class PredictedTask:
    """Predictions of one task."""

    texts: Callable[[Sequence[Input]], tuple[str, ...]]
    """Return the text of each input; raise ValueError for an input of another type."""
    predict: "Callable[[AnyLoaded, Sequence[Input], Sequence[str | None] | None], Answers]"
    """Return the answers of a loaded model to inputs with the values of the routing column, if any."""
    completed: "Callable[[EndpointAnswer, ModelVersion], Answer]"
    """Return the answer of an endpoint, without its input."""


def _texts(inputs: Sequence[Input]) -> tuple[str, ...]:
    texts = tuple(value for value in inputs if isinstance(value, str))
    if len(texts) != len(inputs):
        raise ValueError("a classifier predicts texts; give texts instead of conversations")
    return texts


def input_messages(value: Input) -> list[Mapping[str, str]]:
    """Return an input as the messages of a conversation."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else list(value)


def _classify(loaded: "AnyLoaded", inputs: Sequence[Input], groups: Sequence[str | None] | None) -> Answers:
    from serving.engines.classify import predict_hybrid, predict_texts, scores_by_class
    from tailorbird.models.loading import LoadedHybrid

    texts = _texts(inputs)
    if isinstance(loaded, LoadedHybrid):
        rows = list(zip(texts, groups or [None] * len(texts), strict=True))
        predictions = predict_hybrid(loaded, rows, batch_size=BATCH_SIZE)
    else:
        predictions = predict_texts(loaded, texts, batch_size=BATCH_SIZE)  # type: ignore[arg-type]
    return Answers(
        Answer(
            input=text,
            output=loaded.version.typed_label(prediction.label),
            confidence=prediction.known_score,
            version=loaded.version.version,
            scores=scores_by_class(loaded, prediction),  # type: ignore[arg-type]
            answered_by=prediction.answered_by,
            row=row,
        )
        for row, (text, prediction) in enumerate(zip(texts, predictions, strict=True))
    )


def _answer(loaded: "AnyLoaded", inputs: Sequence[Input], _: Sequence[str | None] | None) -> Answers:
    """Return the answers of a chat model, by the code that scores batches."""
    import pyarrow as pa

    from serving.batch_jobs.schema import Part
    from serving.batch_jobs.scorers import SCORERS, PartRows

    messages = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
    table = pa.table({"messages": pa.array(map(input_messages, inputs), messages)})
    part = Part(number=0, uri="inputs", start=0, first=0, num_rows=len(inputs), etag="")
    columns = SCORERS["chat"].answer(loaded, PartRows(table, part, "messages"), batch_size=BATCH_SIZE)
    values = {name: column.to_pylist() for name, column in columns.items()}
    return Answers(
        Answer(
            input=prompt,
            output=values["answer"][row],
            confidence=values["confidence"][row],
            version=loaded.version.version,
            answered_by=values["answered_by"][row] if "answered_by" in values else None,
            finish_reason=values["finish_reason"][row],
            row=row,
        )
        for row, prompt in enumerate(map(last_text, inputs))
    )


def _completed_label(answer: "EndpointAnswer", version: "ModelVersion") -> Answer:
    from tailorbird.evaluation.inference.endpoint_predictions import NO_LABEL
    from tailorbird.models.endpoint.prompts import label_of

    label = label_of(answer.text, classes=version.classes) or NO_LABEL
    return Answer("", version.typed_label(label), answer.probability, version.version)


PREDICTED_TASKS = {
    "classification": PredictedTask(_texts, _classify, _completed_label),
    "chat": PredictedTask(
        texts=lambda inputs: tuple(map(last_text, inputs)),
        predict=_answer,
        completed=lambda answer, version: Answer(
            "", answer.text, answer.confidence, version.version, finish_reason=answer.finish_reason
        ),
    ),
}
"""Predictions, by the `task` of a version."""
