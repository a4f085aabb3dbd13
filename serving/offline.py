"""Versions of any kind that answer lists of rows in this process, for batches and for the Python
interface."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from serving.engines.classify import Prediction, predict_texts
from tailorbird.config.serving import ServingConfig
from tailorbird.data.rows import Conversation, DataError, query_of
from tailorbird.evaluation.inference.endpoint_requests import (
    RequestLimits,
    StoredAnswers,
    fetch_answers,
)
from tailorbird.models.endpoint.completion import EndpointAnswer
from tailorbird.models.endpoint.errors import EndpointError
from tailorbird.models.endpoint.prompts import label_of, request_body
from tailorbird.registry.hybrid_routing import IntArray, PartName, answer_rows
from tailorbird.registry.versions import ModelVersion, read_parts
from tailorbird.storage import s3
from tailorbird.storage.paths import task_of_artifact

if TYPE_CHECKING:
    from tailorbird.models.generation import Answer
    from tailorbird.models.loading import AnyLoaded, LoadedChat, LoadedClassifier


class InputRow(NamedTuple):
    """A row to answer."""

    turns: Conversation
    """The turns before the answer; for a classifier, one turn of the user."""
    name: str
    """Name of the row in error messages, for example `s3://lake/in.parquet: row 3`."""
    group: str | None = None
    """Value of the routing column of a hybrid; None if it is missing."""


class ChatAnswer(NamedTuple):
    """The answer of a chat version to a row."""

    text: str | None
    """None if an endpoint refuses the row."""
    finish_reason: str | None
    """`stop`, `length`, or the code of the error with which an endpoint refuses the row; None if it
    states none."""
    confidence: float | None
    """exp of the mean log-probability of the tokens; for the kind `nearest`, the similarity; None
    if unknown."""
    answered_by: PartName | None = None
    reported_model: str | None = None  # the model that an endpoint reported


AnswerRows = Callable[[Sequence[InputRow]], Sequence[Any]]
"""Return the `Prediction` or, for chat, the `ChatAnswer` of each row."""


@dataclass(frozen=True)
class OfflineModel:
    """A version that is ready to answer rows as the service does, without requests, limits and the
    request log."""

    version: ModelVersion
    _answer: AnswerRows

    def answer(self, rows: Sequence[InputRow]) -> Sequence[Any]:
        """Return the `Prediction` or, for chat, the `ChatAnswer` of each row; chat models decode
        greedily.

        An error of a hybrid's part is raised: the other part does not answer instead. Raises
        DataError, which names the row, for a row that cannot be answered, and the errors of
        `fetch_answers` for an endpoint.
        """
        for row in rows:
            if not row.turns or row.turns[-1][0] != "user":
                raise DataError(
                    f"{row.name} does not end with a user message; remove the messages after the "
                    "last user message"
                )
        return self._answer(rows)


def load_offline(
    version: ModelVersion,
    *,
    batch_size: int,
    device: str | None = None,
    limits: RequestLimits | None = None,
    answers_uri: str | None = None,
    vllm: ServingConfig | None = None,
) -> OfflineModel:
    """Load a registered version of any kind. No request is sent to an endpoint.

    Args:
        version: The version to load.
        batch_size: Maximum number of texts of a classifier's forward pass.
        device: A torch device; by default, the GPU if there is one.
        limits: Limits of the requests to an endpoint.
        answers_uri: Folder in which the answers of an endpoint are stored, so that no request is
            sent twice; by default, that of the version's task.
        vllm: The service's configuration, if vLLM generates the answers of language models.

    Raises RegistryError if a file is missing or was changed, and the errors of `load_version` and
    `VllmModel`.
    """
    if version.hybrid is not None:
        from tailorbird.models.loading import checked_copy

        checked_copy(version.pinned)
        load = partial(
            load_offline,
            batch_size=batch_size,
            device=device,
            limits=limits,
            answers_uri=answers_uri,
            vllm=vllm,
        )
        return offline_hybrid(version, *map(load, read_parts(version.hybrid)))
    if version.endpoint is not None:
        return OfflineModel(
            version,
            _offline_endpoint(version, limits=limits or RequestLimits(), answers_uri=answers_uri),
        )
    if vllm is not None and version.spec.uses_base:
        from serving.batch_jobs.vllm_model import VllmModel

        model = VllmModel(version, config=vllm)
        return OfflineModel(
            version,
            partial(_chat, model.loaded, max_length=model.max_length, generate=model.answer),
        )
    from tailorbird.models.loading import load_version

    return offline_model(load_version(version, device=device), batch_size=batch_size)


def offline_model(loaded: "AnyLoaded[ModelVersion]", *, batch_size: int) -> OfflineModel:
    """Return a loaded version as a model that answers rows; see `load_offline`."""
    from tailorbird.models.loading import LoadedClassifier

    answer: AnswerRows
    if isinstance(loaded, LoadedClassifier):
        answer = partial(_classify, loaded, batch_size=batch_size)
    elif loaded.model is None:
        answer = partial(_nearest, loaded)
    else:
        from tailorbird.models.generation import context_length

        answer = partial(
            _chat, loaded, max_length=context_length(loaded.lm), generate=partial(_generate, loaded)
        )
    return OfflineModel(loaded.version, answer)


def offline_hybrid(
    version: ModelVersion, first: OfflineModel, second: OfflineModel
) -> OfflineModel:
    """Return a hybrid as a model that answers rows with its parts; see `answer_rows`."""
    return OfflineModel(version, partial(_answer_by_parts, version, first, second))


def _classify(
    loaded: "LoadedClassifier[ModelVersion]", rows: Sequence[InputRow], *, batch_size: int
) -> list[Prediction]:
    return predict_texts(loaded, [query_of(row.turns) for row in rows], batch_size=batch_size)


def _answer_by_parts(
    version: ModelVersion, first: OfflineModel, second: OfflineModel, rows: Sequence[InputRow]
) -> list[Any]:
    assert version.hybrid is not None

    def answer(name: PartName, indices: IntArray) -> Sequence[Any]:
        part = first if name == "first" else second
        return part.answer([rows[index] for index in indices])

    answers = answer_rows(
        version.hybrid.routing,
        len(rows),
        answer=answer,
        confidence=_confidence,
        groups=[row.group for row in rows],
    )
    return [answer._replace(answered_by=name) for name, answer in answers]


def _confidence(answer: Prediction | ChatAnswer) -> float:
    """Return the confidence that a cascade compares with its threshold; NaN if it is unknown."""
    if isinstance(answer, Prediction):
        return answer.score
    if answer.confidence is None:
        return math.nan
    return answer.confidence


def _offline_endpoint(
    version: ModelVersion, *, limits: RequestLimits, answers_uri: str | None
) -> AnswerRows:
    """Return the function that answers rows by requests to the version's endpoint."""
    from tailorbird.models.loading import checked_copy, load_retrieval_index

    endpoint = version.endpoint
    prompting = version.prompting
    assert endpoint is not None
    assert prompting is not None
    index = load_retrieval_index(
        checked_copy(version.pinned), retrieval=prompting.retrieval, device="cpu"
    )
    parent = answers_uri or task_of_artifact(version.uri).task_uri
    stored_answers: dict[str, StoredAnswers] = {}  # see `fetch_answers`
    parsed: Callable[[EndpointAnswer], ChatAnswer | Prediction]
    if version.task == "chat":
        parsed = _endpoint_chat
    else:
        parsed = partial(_endpoint_label, classes=version.classes)

    def answer(rows: Sequence[InputRow]) -> list[Any]:
        bodies = [request_body(row.turns, version=version, index=index) for row in rows]
        try:
            answers = fetch_answers(
                bodies, endpoint=endpoint, parent=parent, limits=limits, listed=stored_answers
            )
        except (EndpointError, s3.StorageError):
            raise
        except ValueError as error:  # the spend is limited, and a price is missing
            raise DataError(str(error)) from None
        return [parsed(each) for each in answers]

    return answer


def _endpoint_label(answer: EndpointAnswer, *, classes: tuple[str, ...]) -> Prediction:
    """Return the label `NO_LABEL` for a refusal or an answer that names no class. Other classes
    have no scores."""
    from tailorbird.evaluation.inference.endpoint_predictions import NO_LABEL  # imports torch

    label = label_of(answer.text, classes=classes) or NO_LABEL
    score = math.nan if answer.probability is None else answer.probability
    return Prediction(label, score, np.empty(0), reported_model=answer.model or None)


def _endpoint_chat(answer: EndpointAnswer) -> ChatAnswer:
    text = None if answer.refused else answer.text
    return ChatAnswer(
        text, answer.finish_reason, answer.confidence, reported_model=answer.model or None
    )


def _nearest(loaded: "LoadedChat[ModelVersion]", rows: Sequence[InputRow]) -> list[ChatAnswer]:
    """Return stored answers, with the similarity as confidence."""
    from tailorbird.models.retrieval.chat_prompt import nearest_answer

    assert loaded.index is not None  # `VersionConfig` requires it for the kind `nearest`
    stored = [nearest_answer(row.turns, index=loaded.index) for row in rows]
    return [ChatAnswer(answer.text, "stop", answer.similarity) for answer in stored]


def _chat(
    loaded: "LoadedChat[ModelVersion]",
    rows: Sequence[InputRow],
    *,
    max_length: int | None,
    generate: "Callable[[list[list[int]]], list[Answer]]",
) -> list[ChatAnswer]:
    """Return greedy answers, by continuous batching over all rows."""
    answers = generate(_prompts(loaded, rows, max_length=max_length))
    return [
        ChatAnswer(
            str(loaded.tokenizer.decode(answer.tokens, skip_special_tokens=True)).strip(),
            "stop" if answer.finished else "length",
            answer.confidence,
        )
        for answer in answers
    ]


def _generate(loaded: "LoadedChat[ModelVersion]", prompts: list[list[int]]) -> "list[Answer]":
    from tailorbird.models.generation import answer_prompts
    from tailorbird.models.grammar.compiler import grammar_for

    return answer_prompts(
        loaded.lm,
        prompts,
        max_new_tokens=loaded.prompting.max_new_tokens,
        end_id=int(loaded.tokenizer.eos_token_id),
        grammar=grammar_for(
            loaded.prompting.response_format, lm=loaded.lm, tokenizer=loaded.tokenizer
        ),
    )


def _prompts(
    loaded: "LoadedChat[ModelVersion]", rows: Sequence[InputRow], *, max_length: int | None
) -> list[list[int]]:
    """Return the token ids of each row's prompt. Raises DataError for a row that the model cannot
    answer."""
    from tailorbird.models.retrieval.chat_prompt import chat_prompt

    prompting = loaded.prompting
    prompts = []
    num_new = prompting.max_new_tokens
    if max_length is not None:
        prompting = prompting.within(max_length - num_new)
    for row in rows:
        try:
            prompt = chat_prompt(
                row.turns, tokenizer=loaded.tokenizer, prompting=prompting, index=loaded.index
            ).tokens
        except DataError as error:
            raise DataError(f"{row.name}: {error}") from None
        if max_length is not None and len(prompt) + num_new > max_length:
            raise DataError(
                f"{row.name} has {len(prompt)} tokens and the answer up to {num_new}, but the "
                f"model accepts {max_length} in total; shorten the row"
            )
        prompts.append(prompt)
    return prompts
