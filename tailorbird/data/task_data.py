"""Data handling of each task: the columns to read, and their conversion to rows and tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa

from tailorbird.config.answers import AnswersConfig
from tailorbird.config.data import DataConfig
from tailorbird.config.recipe import Recipe
from tailorbird.config.task_rules import TaskName
from tailorbird.data.chat_template import conversation_tokens, training_tokens
from tailorbird.data.conversations import answer_fault
from tailorbird.data.parquet import (
    LABEL_KINDS,
    conversations_of,
    groups_of,
    kind_of,
    read_strings,
    texts_of,
)
from tailorbird.data.rows import DataError, Rows, text_of
from tailorbird.data.tokenize import encode_texts
from tailorbird.data.tokenized import TokenLists

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class ClassificationData:
    """Data of classification tasks: texts and labels."""

    name: ClassVar[TaskName] = "classification"
    prompt: str = ""  # text before each text

    def columns(self, config: DataConfig) -> list[str]:
        """Return the names of the columns that the task reads, without duplicates."""
        return _column_names(config, config.text, config.label)

    def rows(self, table: pa.Table, *, config: DataConfig, uri: str, first: int = 0) -> Rows:
        """Return the rows of a table that starts at row `first` of `uri`; raise DataError as
        `loader.read_rows`."""
        texts = texts_of(table, config.text, uri=uri, first=first)
        labels = read_strings(table, config.label, uri=uri, first=first, allowed=LABEL_KINDS)
        return _with_keys_and_groups(
            Rows((), texts, labels), table, config=config, uri=uri, first=first
        )

    def require_types(self, schema: pa.Schema, *, config: DataConfig, uri: str) -> None:
        """Raise DataError for a column of an unsupported type, without reading rows."""
        self.rows(_empty(schema, self.columns(config)), config=config, uri=uri)

    def encode(
        self, rows: Rows, *, tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> TokenLists:
        """Tokenize training rows, truncated to `max_length` tokens; raise DataError as
        `training_tokens`."""
        tokens = encode_texts(
            rows.texts, tokenizer=tokenizer, max_length=max_length, prompt=self.prompt
        )
        return TokenLists(tokens, labels=rows.labels)

    def longest_row(self, config: Any) -> int | None:
        """Return the maximum tokens of a training row for a transformers config; None if there is
        no limit."""
        return getattr(config, "max_position_embeddings", None) or None

    def template_error(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:  # noqa: ARG002  chat only
        """Return the reason why the tokenizer's chat template cannot be used; None if it can, or is
        not needed."""
        return None

    def model_class(self, *, is_causal: bool) -> Any:  # noqa: ARG002  chat only
        """Return the transformers auto class for the model that the task trains."""
        from transformers import AutoModel

        return AutoModel


@dataclass(frozen=True)
class ChatData:
    """Data of chat tasks: conversations that end with an answer. The methods are those of
    `ClassificationData`."""

    name: ClassVar[TaskName] = "chat"
    system: str | None = None  # system message for conversations without one
    answers: AnswersConfig | None = None  # how structured answers are compared

    def columns(self, config: DataConfig) -> list[str]:
        if config.messages:
            inputs = [config.messages]
        else:
            inputs = [config.prompt, config.completion]
        return _column_names(config, *inputs)

    def rows(self, table: pa.Table, *, config: DataConfig, uri: str, first: int = 0) -> Rows:
        untrained: tuple[tuple[int, ...], ...] | None = None
        if config.messages:
            weighted = conversations_of(table, config.messages, uri=uri, first=first)
            conversations = [row.turns for row in weighted]
            untrained = tuple(row.untrained for row in weighted)
        else:
            prompts = texts_of(table, config.prompt, uri=uri, first=first)
            answers = texts_of(table, config.completion, uri=uri, first=first)
            pairs = zip(prompts, answers, strict=True)
            conversations = [(("user", prompt), ("assistant", answer)) for prompt, answer in pairs]
        for position, turns in enumerate(conversations, start=first):
            if (fault := answer_fault(turns)) is not None:
                raise DataError(
                    f"{uri}: the conversation in row {position} has no answer; {fault}. Correct or "
                    "drop the row"
                )
        labels = tuple(turns[-1][1] for turns in conversations)
        prompted = tuple(turns[:-1] for turns in conversations)
        rows = Rows(
            (),
            tuple(map(text_of, prompted)),
            labels,
            conversations=prompted,
            untrained_turns=untrained,
            answers=self.answers,
        )
        return _with_keys_and_groups(rows, table, config=config, uri=uri, first=first)

    def require_types(self, schema: pa.Schema, *, config: DataConfig, uri: str) -> None:
        table = _empty(schema, self.columns(config))
        self.rows(table, config=config, uri=uri)
        if config.messages:
            column = table.schema.field(config.messages).type
            if kind_of(column) != "messages":
                raise DataError(
                    f"{uri}: column {config.messages!r} has type {column}, but must have lists of "
                    f"{{role, content}}; name another column"
                )

    def encode(
        self,
        rows: Rows,
        *,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> TokenLists:
        tokens = training_tokens(
            rows, tokenizer=tokenizer, system=self.system, max_length=max_length
        )
        return TokenLists(
            [row.ids for row in tokens], assistant_masks=[row.assistant_mask for row in tokens]
        )

    def longest_row(self, config: Any) -> int | None:
        # Attention covers a packed conversation as a whole, so it must also fit into a sliding
        # attention window.
        config = config.get_text_config(decoder=True)
        limits = [getattr(config, "max_position_embeddings", None)]
        if "sliding_attention" in (getattr(config, "layer_types", None) or ["sliding_attention"]):
            limits.append(getattr(config, "sliding_window", None))
        return min((limit for limit in limits if limit), default=None)

    def template_error(self, tokenizer: "PreTrainedTokenizerBase") -> str | None:
        try:
            conversation_tokens((("user", "a"),), "b", tokenizer=tokenizer, system=self.system)
        except DataError as error:
            return str(error)
        return None

    def model_class(self, *, is_causal: bool) -> Any:
        from transformers import AutoModel, AutoModelForCausalLM

        if is_causal:
            return AutoModelForCausalLM
        return AutoModel


DataTask = ClassificationData | ChatData
CLASSIFICATION = ClassificationData()


def data_task(
    name: TaskName, *, system: str | None = None, answers: AnswersConfig | None = None
) -> DataTask:
    """Return the data handling of the task with this name in the recipe. `system` and `answers` are
    for chat tasks."""
    if name == "chat":
        return ChatData(system, answers)
    return CLASSIFICATION


def recipe_task(recipe: Recipe) -> DataTask:
    """Return the data handling of a recipe."""
    return data_task(recipe.task, system=recipe.data.system, answers=recipe.evaluation.answers)


def _column_names(config: DataConfig, *inputs: str) -> list[str]:
    """Return `inputs` and the columns that every task reads, without duplicates."""
    names = (*inputs, config.split_by, *config.groups)
    return list(dict.fromkeys(name for name in names if name is not None))


def _with_keys_and_groups(
    rows: Rows, table: pa.Table, *, config: DataConfig, uri: str, first: int
) -> Rows:
    """Add row ids, split keys and groups."""
    return replace(
        rows,
        row_ids=tuple(str(position) for position in range(first, first + table.num_rows)),
        split_keys=read_strings(table, config.split_by, uri=uri, first=first)
        if config.split_by
        else None,
        groups={name: groups_of(table, name, uri=uri, first=first) for name in config.groups},
    )


def _empty(schema: pa.Schema, columns: Sequence[str]) -> pa.Table:
    return pa.schema([schema.field(name) for name in columns]).empty_table()
