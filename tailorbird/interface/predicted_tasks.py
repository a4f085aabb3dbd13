"""Predictions of each task: from inputs to rows, and from the answers of a loaded version to
`Answer`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailorbird.interface.answer import Answer, Input, last_text

if TYPE_CHECKING:
    from serving.engines.classify import Prediction
    from serving.offline import ChatAnswer
    from tailorbird.data.rows import Conversation
    from tailorbird.registry.versions import ModelVersion


@dataclass(frozen=True)
class PredictedTask:
    """Predictions of one task."""

    turns: "Callable[[Input], Conversation]"
    """Return the turns of an input; raise ValueError for an input of another type."""
    answer: Callable[..., Answer]
    """Return the `Answer` for a prediction or a chat answer of a version, without its input and
    row."""


def _text_turns(value: Input) -> "Conversation":
    if not isinstance(value, str):
        raise ValueError("a classifier predicts texts; give texts instead of conversations")
    return (("user", value),)


def _chat_turns(value: Input) -> "Conversation":
    from tailorbird.data.conversations import conversation_of

    last_text(value)  # raises ValueError
    if isinstance(value, str):
        return (("user", value),)
    return conversation_of(list(map(dict, value))).turns


def _prediction_answer(prediction: "Prediction", version: "ModelVersion") -> Answer:
    from serving.engines.classify import scores_by_class

    has_scores = bool(prediction.scores.size)  # an endpoint returns none
    return Answer(
        input="",
        output=version.typed_label(prediction.label),
        confidence=prediction.known_score,
        version=version.version,
        scores=scores_by_class(prediction, classes=version.classes) if has_scores else None,
        answered_by=prediction.answered_by,
        reported_model=prediction.reported_model,
    )


def _chat_answer(answer: "ChatAnswer", version: "ModelVersion") -> Answer:
    return Answer(
        input="",
        output=answer.text or "",
        confidence=answer.confidence,
        version=version.version,
        answered_by=answer.answered_by,
        finish_reason=answer.finish_reason,
        reported_model=answer.reported_model,
    )


PREDICTED_TASKS: dict[str, PredictedTask] = {
    "classification": PredictedTask(_text_turns, _prediction_answer),
    "chat": PredictedTask(_chat_turns, _chat_answer),
}
"""Predictions, by the `task` of a version."""
