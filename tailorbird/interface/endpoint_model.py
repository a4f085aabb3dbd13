"""Predict with a version of an external endpoint, or with a hybrid that has such a part."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from tailorbird.interface.answer import Input
from tailorbird.interface.answers import Answers
from tailorbird.interface.predicted_tasks import PREDICTED_TASKS, input_messages

if TYPE_CHECKING:
    from tailorbird.evaluation.inference.endpoint_requests import StoredAnswers
    from tailorbird.registry.hybrid_routing import IntArray, PartName
    from tailorbird.registry.versions import ModelVersion

PredictPart = Callable[[list[Input]], Answers]


@dataclass(frozen=True)
class EndpointModel:
    """A version whose endpoint answers or, with `parts`, a hybrid in which one of the parts is such a version.

    Requests are sent as in the evaluation: with the prompt and the `max_spend` of the version, and not again for an
    input whose answer is stored in the registry.
    """

    version: "ModelVersion"
    parts: tuple[PredictPart, PredictPart] | None = None
    _kept: "dict[str, StoredAnswers]" = field(default_factory=dict, repr=False, compare=False)  # see `fetch_answers`

    def answers(self, inputs: list[Input], *, groups: Sequence[str | None] | None = None) -> Answers:
        """Return the answers to inputs; see `fetch_answers` for errors of the endpoint."""
        if self.parts is None:
            return _of_endpoint(self.version, inputs, kept=self._kept)
        return _of_hybrid(self.version, self.parts, inputs, groups=groups)


def _of_endpoint(version: "ModelVersion", inputs: list[Input], *, kept: "dict[str, StoredAnswers]") -> Answers:
    from tailorbird.data.rows import DataError, Rows
    from tailorbird.evaluation.inference.endpoint_predictions import answer_rows_of_endpoint
    from tailorbird.evaluation.inference.endpoint_requests import RequestLimits

    task = PREDICTED_TASKS[version.task]
    texts = task.texts(inputs)
    conversations = []
    for position, messages in enumerate(map(input_messages, inputs)):
        conversations.append(tuple((message["role"], message["content"]) for message in messages))
        if messages[-1]["role"] != "user":
            raise DataError(
                f"the conversation in row {position} does not end with a user message; remove the messages after the "
                "last user message"
            )
    ids = tuple(map(str, range(len(texts))))
    rows = Rows(ids, texts, labels=("",) * len(texts), conversations=tuple(conversations))
    answers = answer_rows_of_endpoint(version.uri, rows=rows, limits=RequestLimits(), kept=kept)
    return Answers(
        replace(task.completed(answer, version), input=text, reported_model=answer.model or None, row=row)
        for row, (text, answer) in enumerate(zip(texts, answers, strict=True))
    )


def _of_hybrid(
    version: "ModelVersion",
    parts: tuple[PredictPart, PredictPart],
    inputs: list[Input],
    *,
    groups: Sequence[str | None] | None,
) -> Answers:
    from tailorbird.registry.hybrid_routing import answer_rows

    assert version.hybrid is not None

    def of_part(name: "PartName", rows: "IntArray") -> Answers:
        predict = parts[0] if name == "first" else parts[1]
        return predict([inputs[row] for row in rows])

    routed = answer_rows(
        version.hybrid.routing,
        len(inputs),
        answer=of_part,
        confidence=lambda answer: answer.confidence or 0.0,
        groups=groups,
    )
    answers = []
    for row, (name, answer) in enumerate(routed):
        scores = None if answer.scores is None else dict.fromkeys(version.classes, 0.0) | dict(answer.scores)
        output = version.typed_label(str(answer.output))
        answers.append(
            replace(answer, output=output, version=version.version, scores=scores, answered_by=name, row=row)
        )
    return Answers(answers)
