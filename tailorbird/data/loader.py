"""Read a recipe's rows and split them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tailorbird.config.data import DataConfig
from tailorbird.data.parquet import concat_tables, conversations_of, read_strings, read_table
from tailorbird.data.rows import NO_GROUP, Conversation, DataError, Rows, Splits
from tailorbird.data.splits import normalise, split_by_key, subsample

SPLIT_FRACTIONS = (0.72, 0.11, 0.17)
SPLIT_SEED = 0


def read_splits(config: DataConfig, *, chat: bool = False) -> Splits:
    """Reads what the section names; without `validation` and `test`, `train` is split 72/11/17.

    Without `validation` alone, `validation_share` of `train` is drawn. Both are by `split_by`, or by normalised text
    where the recipe names none (so copies of a text stay together). With `chat` rows are conversations. Raises
    DataError, see `read_rows` and `read_conversations`; whether the splits fit each other is for `checks.clean` to say.
    """
    read = read_conversations if chat else read_rows
    train = read(*config.train_uris, config=config)
    if config.test is None:
        train, validation, test = _parted(train, fractions=SPLIT_FRACTIONS)
    elif config.validation is None:
        share = config.validation_share
        train, validation, _ = _parted(train, fractions=(1 - share, share, 0.0))
        test = read(config.test, config=config)
    else:
        validation, test = (read(uri, config=config) for uri in (config.validation, config.test))
    return Splits(train, *_bounded(validation, test, config=config))


def read_later(config: DataConfig, *, chat: bool) -> tuple[Rows, Rows]:
    """Validation and test, of a section that names both; see `read_splits`."""
    read = read_conversations if chat else read_rows
    assert config.validation is not None
    assert config.test is not None
    validation, test = (read(uri, config=config) for uri in (config.validation, config.test))
    return _bounded(validation, test, config=config)


def read_test(config: DataConfig, *, chat: bool) -> Rows:
    """The test rows alone, the same as in `read_splits`, which is gone through where they are a part of `train`."""
    if config.test is None:
        return read_splits(config, chat=chat).test
    read = read_conversations if chat else read_rows
    return _at_most(read(config.test, config=config), config.max_test_rows)


def _bounded(validation: Rows, test: Rows, *, config: DataConfig) -> tuple[Rows, Rows]:
    return _at_most(validation, config.max_validation_rows), _at_most(test, config.max_test_rows)


def _at_most(rows: Rows, size: int | None) -> Rows:
    """A random part of the rows, the same at every run, where there are more."""
    return rows if size is None else rows.take(subsample(len(rows), size=size, seed=SPLIT_SEED))


def _parted(rows: Rows, *, fractions: tuple[float, float, float]) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test of these rows."""
    keys = rows.split_keys if rows.split_keys is not None else [normalise(text) for text in rows.texts]
    parts = split_by_key(keys, fractions=fractions, seed=SPLIT_SEED)
    train, validation, test = (rows.take(np.flatnonzero(parts == part)) for part in range(3))
    return train, validation, test


def read_rows(*uris: str, config: DataConfig) -> Rows:
    """Rows of Parquet files or folders, one after the other, by `section`'s columns; integer labels become strings.

    Raises DataError when the store cannot be read, a file is not Parquet, a column is missing or of a wrong type, a
    text, label or split key is null, or there are no rows.
    """
    return _read(*uris, config=config, chat=False)


def read_conversations(*uris: str, config: DataConfig) -> Rows:
    """Conversations of Parquet files or folders, one after the other, from `section`'s chat columns.

    Raises DataError as `read_rows`, and for a conversation that does not end with an answer of the assistant.
    """
    return _read(*uris, config=config, chat=True)


def _read(*uris: str, config: DataConfig, chat: bool) -> Rows:
    columns, uri = columns_of(config, chat=chat), ", ".join(uris)
    table = concat_tables([read_table(uri, columns=columns) for uri in uris], uri=uri)
    return rows_of(table, config=config, chat=chat, uri=uri)


def columns_of(config: DataConfig, *, chat: bool) -> list[str]:
    """The columns that a recipe asks of a table of rows, or of conversations, each once."""
    asked = [config.text, config.label]
    if chat:
        asked = [config.messages] if config.messages else [config.prompt, config.completion]
    named = (*asked, config.split_by, *config.groups)
    return list(dict.fromkeys(column for column in named if column is not None))


def rows_of(table: pa.Table, *, config: DataConfig, chat: bool, uri: str, first: int = 0) -> Rows:
    """A table's rows, or conversations; its first one has position `first` in what it was read from, `uri`.

    Raises DataError for a wrong type, a null, or a conversation without an answer.
    """

    def strings(name: str, **allowed: str) -> tuple[str, ...]:
        return read_strings(table, name, uri=uri, first=first, **allowed)

    columns: dict[str, Any]
    if chat:
        if config.messages:
            whole = conversations_of(table, config.messages, uri=uri, first=first)
        else:
            prompts, answers = (strings(name, allowed="string") for name in (config.prompt, config.completion))
            whole = [(("user", one), ("assistant", other)) for one, other in zip(prompts, answers, strict=True)]
        _refuse_unanswered(whole, uri=uri, first=first)
        columns = {
            "texts": tuple("\n".join(content for _, content in conversation[:-1]) for conversation in whole),
            "labels": tuple(conversation[-1][1] for conversation in whole),
            "conversations": tuple(conversation[:-1] for conversation in whole),
        }
    else:
        columns = {
            "texts": strings(config.text, allowed="string"),
            "labels": strings(config.label, allowed="string or integer"),
        }
    return Rows(
        row_ids=tuple(str(position) for position in range(first, first + table.num_rows)),
        split_keys=strings(config.split_by) if config.split_by else None,
        groups={name: strings(name, fill=NO_GROUP) for name in config.groups},
        **columns,
    )


def _refuse_unanswered(whole: Sequence[Conversation], *, uri: str, first: int) -> None:
    for position, conversation in enumerate(whole, start=first):
        if len(conversation) < 2 or conversation[-1][0] != "assistant" or not conversation[-1][1].strip():
            raise DataError(
                f"{uri}: the conversation in row {position} has no answer: it must end with a turn of the assistant "
                "that is not empty, after at least one other; mend the row or drop it"
            )
