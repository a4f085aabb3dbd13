"""Scoring of rows: one `Scorer` per task."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.batch_jobs.loaded_endpoint import LoadedEndpoint
from serving.batch_jobs.schema import Part
from serving.batch_jobs.vllm_model import VllmModel
from serving.engines.classify import Prediction, predict_hybrid, predict_texts
from tailorbird.config.data import DataConfig
from tailorbird.data.parquet import conversations_of, groups_of, texts_of
from tailorbird.data.rows import Conversation, DataError
from tailorbird.registry.hybrid_routing import IntArray, PartName, answer_rows

if TYPE_CHECKING:
    from tailorbird.models.loading import LoadedChat, LoadedClassifier, LoadedHybrid, LoadedNearest
    from tailorbird.registry.versions import ModelVersion

Columns = Mapping[str, pa.Array]
CHAT_ANSWER = pa.schema(
    {"answer": pa.string(), "finish_reason": pa.string(), "confidence": pa.float32(), "answered_by": pa.string()}
)
"""Columns of the answers of a hybrid."""


@dataclass(frozen=True)
class PartRows:
    """The rows of a part, and the name of the column to score."""

    table: pa.Table
    part: Part
    column: str
    selected: NDArray[np.int64] | None = None
    """Positions of the rows of `table` in the part; None for all rows."""

    def take(self, positions: NDArray[np.int64]) -> "PartRows":
        """Return some of the rows of a whole part, which keep their positions for messages."""
        return PartRows(self.table.take(pa.array(positions)), self.part, self.column, positions)

    def position(self, row: int) -> int:
        """Return the position in the file of a row of `table`."""
        return self.part.start + (row if self.selected is None else int(self.selected[row]))


@dataclass(frozen=True)
class Scorer:
    """The scoring function and the defaults of one task."""

    part_rows: int  # rows in a worker's memory, and rows to repeat after a failure: seconds to a minute of work
    default_column: str
    answer: Callable[..., Columns]
    """`(loaded, rows, batch_size=...)` -> answers in row order, by output column."""


def _classify(
    loaded: "LoadedClassifier[ModelVersion] | LoadedEndpoint | LoadedHybrid", rows: PartRows, *, batch_size: int
) -> Columns:
    """Return labels and scores. The label of a text is null if the endpoint refuses it or names no class."""
    from tailorbird.models.loading import LoadedHybrid

    table, part = rows.table, rows.part
    texts = texts_of(table, rows.column, uri=part.uri, first=part.start)
    columns: dict[str, pa.Array] = {}
    if isinstance(loaded, LoadedHybrid):
        groups: Sequence[str | None] = [None] * len(texts)
        if loaded.routing.column is not None:
            groups = groups_of(table, loaded.routing.column, uri=part.uri, first=part.start)
            columns["group"] = pa.array(groups)
        hybrid_rows = list(zip(texts, groups, strict=True))
        predictions = predict_hybrid(loaded, hybrid_rows, batch_size=batch_size, predict=_predict)
        columns["answered_by"] = pa.array([prediction.answered_by for prediction in predictions])
    else:
        predictions = _predict(loaded, texts, batch_size=batch_size)
    known = frozenset(loaded.classes)
    labels = pa.array([each.label if each.label in known else None for each in predictions], pa.string())
    if loaded.version.integer_labels:
        typed = (loaded.version.typed_label(prediction.label) for prediction in predictions)
        labels = pa.array([label if isinstance(label, int) else None for label in typed], pa.int64())
    scores = pa.array([prediction.known_score for prediction in predictions], pa.float32())
    return {"label": labels, "score": scores} | columns


def _predict(
    loaded: "LoadedClassifier[ModelVersion] | LoadedEndpoint", texts: Sequence[str], *, batch_size: int
) -> list[Prediction]:
    if isinstance(loaded, LoadedEndpoint):
        return loaded.predict(texts)
    return predict_texts(loaded, texts, batch_size=batch_size)


def _answer_chat(
    loaded: "LoadedChat[ModelVersion] | LoadedNearest[ModelVersion] | LoadedEndpoint | LoadedHybrid | VllmModel",
    rows: PartRows,
    *,
    batch_size: int,
) -> Columns:
    """Return greedy answers, as in the evaluation, by continuous batching over the whole part.

    A version of the kind `nearest` returns stored answers, with the similarity as confidence. The answer is null if an
    endpoint refuses the row, and `finish_reason` is then the error code.
    """
    from tailorbird.models.loading import LoadedHybrid

    if isinstance(loaded, LoadedHybrid):
        return _answer_cascade(loaded, rows, batch_size=batch_size)
    if isinstance(loaded, LoadedEndpoint):
        completions = loaded.answers([conversation for _, conversation in _conversations(rows)])
        return {
            "answer": pa.array([None if each.refused else each.text for each in completions], pa.string()),
            "finish_reason": pa.array([each.finish_reason for each in completions], pa.string()),
            "confidence": pa.array([each.confidence for each in completions], pa.float32()),
        }
    from tailorbird.models.generation import answer_prompts, context_length
    from tailorbird.models.grammar.compiler import grammar_for
    from tailorbird.models.loading import LoadedNearest
    from tailorbird.models.retrieval.chat_prompt import nearest_answer

    if isinstance(loaded, LoadedNearest):
        stored = [nearest_answer(conversation, index=loaded.index) for _, conversation in _conversations(rows)]
        return {
            "answer": pa.array([answer.text for answer in stored], pa.string()),
            "finish_reason": pa.array(["stop"] * len(stored)),
            "confidence": pa.array([answer.similarity for answer in stored], pa.float32()),
        }
    tokenizer = loaded.tokenizer
    if isinstance(loaded, VllmModel):
        answers = loaded.answer(_prompts(rows, loaded=loaded, max_length=loaded.max_length))
    else:
        lm, prompting = loaded.model.lm, loaded.prompting
        prompts = _prompts(rows, loaded=loaded, max_length=context_length(lm))
        answers = answer_prompts(
            lm,
            prompts,
            max_new_tokens=prompting.max_new_tokens,
            end_id=int(tokenizer.eos_token_id),
            grammar=grammar_for(prompting.response_format, lm=lm, tokenizer=tokenizer),
        )
    texts = [str(tokenizer.decode(answer.tokens, skip_special_tokens=True)).strip() for answer in answers]
    return {
        "answer": pa.array(texts),
        "finish_reason": pa.array(["stop" if answer.finished else "length" for answer in answers]),
        "confidence": pa.array([answer.confidence for answer in answers], pa.float32()),
    }


def _answer_cascade(loaded: "LoadedHybrid", rows: PartRows, *, batch_size: int) -> Columns:
    """Return the answers of the first part, and those of the second part where the first is not confident."""
    from tailorbird.models.loading import LoadedClassifier

    def answer(name: PartName, indices: IntArray) -> list[Mapping[str, Any]]:
        part = loaded.first if name == "first" else loaded.second
        assert not isinstance(part, LoadedClassifier)  # the parts have the task of the hybrid
        columns = _answer_chat(part, rows.take(indices), batch_size=batch_size)
        return list(pa.table(columns).to_pylist())

    answers = answer_rows(
        loaded.routing, rows.table.num_rows, answer=answer, confidence=lambda columns: columns["confidence"]
    )
    with_part = [{**columns, "answered_by": name} for name, columns in answers]
    return dict(zip(CHAT_ANSWER.names, pa.Table.from_pylist(with_part, CHAT_ANSWER).columns, strict=True))


def _prompts(
    rows: PartRows, *, loaded: "LoadedChat[ModelVersion] | VllmModel", max_length: int | None
) -> list[list[int]]:
    """Return the token ids of each row's prompt; raise DataError, which names the row, if it cannot be answered."""
    from tailorbird.models.retrieval.chat_prompt import chat_prompt

    uri, prompts, prompting = rows.part.uri, [], loaded.prompting
    if max_length is not None:
        prompting = prompting.within(max_length - prompting.max_new_tokens)
    for position, conversation in _conversations(rows):
        try:
            prompt = chat_prompt(
                conversation, tokenizer=loaded.tokenizer, prompting=prompting, index=loaded.index
            ).tokens
        except DataError as error:
            raise DataError(f"{uri}: row {position}: {error}") from None
        if max_length is not None and len(prompt) + prompting.max_new_tokens > max_length:
            raise DataError(
                f"{uri}: row {position} has {len(prompt)} tokens and the answer up to {prompting.max_new_tokens}, "
                f"but the model accepts {max_length} in total; shorten the row"
            )
        prompts.append(prompt)
    return prompts


def _conversations(rows: PartRows) -> Iterator[tuple[int, Conversation]]:
    """Yield the position and the conversation of each row; raise DataError if it does not end with a user message."""
    table, part = rows.table, rows.part
    if pa.types.is_list(table.schema.field(rows.column).type):
        weighted = conversations_of(table, rows.column, uri=part.uri, first=part.start)
        conversations: list[Conversation] = [row.turns for row in weighted]
    else:
        texts = texts_of(table, rows.column, uri=part.uri, first=part.start)
        conversations = [(("user", text),) for text in texts]
    for position, conversation in ((rows.position(row), turns) for row, turns in enumerate(conversations)):
        if not conversation or conversation[-1][0] != "user":
            raise DataError(
                f"{part.uri}: the conversation in row {position} does not end with a user message; "
                "remove the messages after the last user message"
            )
        yield position, conversation


SCORERS = {
    "classification": Scorer(1 << 12, DataConfig.model_fields["text"].default, _classify),
    "chat": Scorer(1 << 8, DataConfig.model_fields["prompt"].default, _answer_chat),
}
"""Scorers, by the version's task."""
