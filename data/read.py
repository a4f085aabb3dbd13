"""First in the way of the data: Parquet on S3 or disk, projected and checked against the recipe, becomes rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster import storage
from data.plain import made_by_code
from data.split import normalise, split_by_key, subsample
from recipes.schema import DataSection

Message = tuple[str, str]
"""Role and content."""
Conversation = tuple[Message, ...]

SPLIT_NAMES = ("train", "validation", "test")
SPLIT_FRACTIONS = (0.72, 0.11, 0.17)
SPLIT_SEED = 0
NO_GROUP = "(none)"
PART_BYTES = 1 << 20
ROLES = ("system", "user", "assistant")


class DataError(ValueError):
    """Data that cannot be used; the message names the URI or split, what was found and what to do."""


@dataclass(frozen=True)
class Rows:
    """Rows of one split, column by column, all of one length.

    `row_ids` are positions in the file or folder as written ("0", "1", ...), given before anything is dropped.
    """

    row_ids: tuple[str, ...]
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    split_keys: tuple[str, ...] | None = None
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    conversations: tuple[Conversation, ...] | None = None
    """Of a chat task, the turns before the answer. The answer is then the row's label, and its text these turns'."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def take(self, indices: Sequence[int] | np.ndarray) -> "Rows":
        """The rows at `indices`, in that order."""
        positions = [int(index) for index in indices]

        def pick(column: tuple[Any, ...]) -> tuple[Any, ...]:
            return tuple(column[position] for position in positions)

        return Rows(
            row_ids=pick(self.row_ids),
            texts=pick(self.texts),
            labels=pick(self.labels),
            split_keys=None if self.split_keys is None else pick(self.split_keys),
            groups={name: pick(column) for name, column in self.groups.items()},
            conversations=None if self.conversations is None else pick(self.conversations),
        )

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> "Rows":
        """From `dataclasses.asdict`, which may have been JSON in between."""

        def column(values: Any) -> Any:
            return None if values is None else tuple(values)

        turns = value["conversations"]
        return cls(
            row_ids=column(value["row_ids"]),
            texts=column(value["texts"]),
            labels=column(value["labels"]),
            split_keys=column(value["split_keys"]),
            groups={name: column(values) for name, values in value["groups"].items()},
            conversations=turns and tuple(tuple((role, content) for role, content in one) for one in turns),
        )


@dataclass(frozen=True)
class Splits:
    """The three splits; only the final evaluation reads `test`."""

    train: Rows
    validation: Rows
    test: Rows

    def items(self) -> Iterator[tuple[str, Rows]]:
        """(name, rows) of each split, train first."""
        return iter((name, getattr(self, name)) for name in SPLIT_NAMES)


def read_splits(section: DataSection, *, chat: bool = False) -> Splits:
    """Reads what the section names; without `validation` and `test`, `train` is split 72/11/17.

    Without `validation` alone, `validation_share` of `train` is drawn. Both are by `split_by`, or by normalised text
    where the recipe names none (so copies of a text stay together). With `chat` rows are conversations. Raises
    DataError, see `read_rows` and `read_conversations`; whether the splits fit each other is for `checks.clean` to say.
    """
    read = read_conversations if chat else read_rows
    train = read(*section.train_uris, section=section)
    if section.test is None:
        train, validation, test = _parted(train, fractions=SPLIT_FRACTIONS)
    elif section.validation is None:
        share = section.validation_share
        train, validation, _ = _parted(train, fractions=(1 - share, share, 0.0))
        test = read(section.test, section=section)
    else:
        validation, test = (read(uri, section=section) for uri in (section.validation, section.test))
    return Splits(train, *_bounded(validation, test, section=section))


def read_later(section: DataSection, *, chat: bool) -> tuple[Rows, Rows]:
    """Validation and test, of a section that names both; see `read_splits`."""
    read = read_conversations if chat else read_rows
    assert section.validation is not None
    assert section.test is not None
    validation, test = (read(uri, section=section) for uri in (section.validation, section.test))
    return _bounded(validation, test, section=section)


def read_test(section: DataSection, *, chat: bool) -> Rows:
    """The test rows alone, the same as in `read_splits`, which is gone through where they are a part of `train`."""
    if section.test is None:
        return read_splits(section, chat=chat).test
    read = read_conversations if chat else read_rows
    return _at_most(read(section.test, section=section), section.max_test_rows)


def _bounded(validation: Rows, test: Rows, *, section: DataSection) -> tuple[Rows, Rows]:
    return _at_most(validation, section.max_validation_rows), _at_most(test, section.max_test_rows)


def _at_most(rows: Rows, size: int | None) -> Rows:
    """A random part of the rows, the same at every run, where there are more."""
    return rows if size is None else rows.take(subsample(len(rows), size=size, seed=SPLIT_SEED))


def _parted(rows: Rows, *, fractions: tuple[float, float, float]) -> tuple[Rows, Rows, Rows]:
    """Train, validation and test of these rows."""
    keys = rows.split_keys if rows.split_keys is not None else [normalise(text) for text in rows.texts]
    parts = split_by_key(keys, fractions=fractions, seed=SPLIT_SEED)
    train, validation, test = (rows.take(np.flatnonzero(parts == part)) for part in range(3))
    return train, validation, test


def read_rows(*uris: str, section: DataSection) -> Rows:
    """Rows of Parquet files or folders, one after the other, by `section`'s columns; integer labels become strings.

    Raises DataError when the store cannot be read, a file is not Parquet, a column is missing or of a wrong type, a
    text, label or split key is null, or there are no rows.
    """
    return _read(*uris, section=section, chat=False)


def read_conversations(*uris: str, section: DataSection) -> Rows:
    """Conversations of Parquet files or folders, one after the other, from `section`'s chat columns.

    Raises DataError as `read_rows`, and for a conversation that does not end with an answer of the assistant.
    """
    return _read(*uris, section=section, chat=True)


def _read(*uris: str, section: DataSection, chat: bool) -> Rows:
    columns, uri = columns_of(section, chat=chat), ", ".join(uris)
    table = _joined([read_table(uri, columns=columns) for uri in uris], uri=uri)
    return rows_of(table, section=section, chat=chat, uri=uri)


def columns_of(section: DataSection, *, chat: bool) -> list[str]:
    """The columns that a recipe asks of a table of rows, or of conversations, each once."""
    asked = [section.text, section.label]
    if chat:
        asked = [section.messages] if section.messages else [section.prompt, section.completion]
    named = (*asked, section.split_by, *section.groups)
    return list(dict.fromkeys(column for column in named if column is not None))


def rows_of(table: pa.Table, *, section: DataSection, chat: bool, uri: str, first: int = 0) -> Rows:
    """A table's rows, or conversations; its first one has position `first` in what it was read from, `uri`.

    Raises DataError for a wrong type, a null, or a conversation without an answer.
    """

    def strings(name: str, **allowed: str) -> tuple[str, ...]:
        return _strings(table, name, uri=uri, first=first, **allowed)

    columns: dict[str, Any]
    if chat:
        if section.messages:
            whole = conversations_of(table, section.messages, uri=uri, first=first)
        else:
            prompts, answers = (strings(name, allowed="string") for name in (section.prompt, section.completion))
            whole = [(("user", one), ("assistant", other)) for one, other in zip(prompts, answers, strict=True)]
        _refuse_unanswered(whole, uri=uri, first=first)
        columns = {
            "texts": tuple("\n".join(content for _, content in conversation[:-1]) for conversation in whole),
            "labels": tuple(conversation[-1][1] for conversation in whole),
            "conversations": tuple(conversation[:-1] for conversation in whole),
        }
    else:
        columns = {
            "texts": strings(section.text, allowed="string"),
            "labels": strings(section.label, allowed="string or integer"),
        }
    return Rows(
        row_ids=tuple(str(position) for position in range(first, first + table.num_rows)),
        split_keys=strings(section.split_by) if section.split_by else None,
        groups={name: strings(name, fill=NO_GROUP) for name in section.groups},
        **columns,
    )


def _refuse_unanswered(whole: Sequence[Conversation], *, uri: str, first: int) -> None:
    for position, conversation in enumerate(whole, start=first):
        if len(conversation) < 2 or conversation[-1][0] != "assistant" or not conversation[-1][1].strip():
            raise DataError(
                f"{uri}: the conversation in row {position} has no answer: it must end with a turn of the assistant "
                "that is not empty, after at least one other; mend the row or drop it"
            )


def texts_of(table: pa.Table, name: str, *, uri: str, first: int) -> tuple[str, ...]:
    """A column of texts of a table that begins at row `first` of `uri`; DataError for another type or a null."""
    return _strings(table, name, uri=uri, first=first, allowed="string")


def groups_of(table: pa.Table, name: str, *, uri: str, first: int) -> tuple[str, ...]:
    """A group column as `Rows.groups` has it: a null is a group of its own; DataError for a type that names none."""
    return _strings(table, name, uri=uri, first=first, fill=NO_GROUP)


def conversations_of(table: pa.Table, name: str, *, uri: str, first: int) -> list[Conversation]:
    """A column of lists of `{role, content}` as conversations; DataError for what is none."""
    found = []
    for position, messages in enumerate(table.column(name).to_pylist(), start=first):
        turns: list[Any] = messages if isinstance(messages, list) else [None]
        for turn in turns:
            known = isinstance(turn, dict) and turn.get("role") in ROLES and isinstance(turn.get("content"), str)
            if not known:
                raise DataError(
                    f"{uri}: column {name!r} holds no conversation in row {position}; it takes a list of "
                    f"{{role, content}}, role one of {', '.join(ROLES)}, content a text"
                )
        found.append(tuple((turn["role"], turn["content"]) for turn in turns))
    return found


def read_table(uri: str, *, columns: Sequence[str]) -> pa.Table:
    """The named columns of a Parquet file, or of every `*.parquet` under a folder in the order of their paths.

    Only these columns are read from the store. Raises DataError, also when there is no row.
    """
    table = _joined([_read_file(name, columns=columns) for name in parquet_files(uri)], uri=uri)
    if table.num_rows == 0:
        raise DataError(f"{uri} has no rows; give a Parquet file or folder with at least one row")
    return table


def _joined(tables: list[pa.Table], *, uri: str) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise DataError(f"{uri}: its files do not have the same column types ({error}); write them alike") from None


def parquet_files(uri: str) -> list[str]:
    """URIs of the Parquet files at or under `uri`, sorted; raises DataError when there are none."""
    try:
        files = storage.list_files(uri)
    except storage.StorageError as error:
        raise DataError(f"cannot read {uri}: {error}") from None
    if files == [uri]:
        return files
    found = [name for name in files if name.endswith(".parquet")]
    if not found:
        raise DataError(
            f"{uri} holds no .parquet file ({len(files)} others); give the URI of a Parquet file or of a folder of them"
        )
    return sorted(found)


def joined(parts: Sequence[Rows]) -> Rows:
    """The rows of all parts, at least one, which have the same columns, one part after the other."""

    def column(name: str) -> Any:
        columns = [getattr(rows, name) for rows in parts]
        return None if columns[0] is None else tuple(chain.from_iterable(columns))

    names = [field.name for field in fields(Rows) if field.name != "groups"]
    groups = {name: tuple(chain.from_iterable(rows.groups[name] for rows in parts)) for name in parts[0].groups}
    return Rows(groups=groups, **{name: column(name) for name in names})


def fingerprint(splits: Splits) -> dict[str, str]:
    """sha256 of each split, by name, over its row ids, texts, labels, other columns and groups by name, in order."""
    return {name: rows_sha256(rows) for name, rows in splits.items()}


def digest_of(digests: Iterable[str]) -> str:
    """sha256 of digests in their order: of rows that are read part by part."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def content_sha256(rows: Rows) -> str:
    """sha256 of the texts with their labels alone, whatever their order and the columns a recipe names beside them."""
    pairs = sorted(zip(rows.texts, rows.labels, strict=True))
    return _digest({"text": tuple(text for text, _ in pairs), "label": tuple(label for _, label in pairs)})


def rows_sha256(rows: Rows) -> str:
    """sha256 of rows, as in `fingerprint`."""
    columns = {"row_id": rows.row_ids, "text": rows.texts, "label": rows.labels}
    columns |= {} if rows.split_keys is None else {"split_key": rows.split_keys}
    if rows.conversations is not None:
        columns["conversation"] = tuple(json.dumps(turns) for turns in rows.conversations)
    columns |= {f"group {name}": rows.groups[name] for name in sorted(rows.groups)}
    return _digest(columns)


def _digest(columns: dict[str, tuple[str, ...]]) -> str:
    digest = hashlib.sha256()
    for row in (columns, *zip(*columns.values(), strict=True)):  # the names first: a group is no split key
        for value in row:
            encoded = value.encode("utf-8", "surrogatepass")
            digest.update(len(encoded).to_bytes(8, "big") + encoded)  # the length keeps ("ab", "c") from ("a", "bc")
    return digest.hexdigest()


def _read_file(uri: str, *, columns: Sequence[str]) -> pa.Table:
    with open_parquet(uri, columns=columns) as file:
        return file.read(columns=list(columns))


@contextmanager
def open_parquet(uri: str, *, columns: Sequence[str], in_parts: bool = False) -> Iterator[pq.ParquetFile]:
    """One Parquet file that has these columns; `in_parts` where rows are read some at a time, in little memory and with
    patience, or else it is read at once.

    Raises DataError, also from within the block, where a column is not there, would be made by code, or the file cannot
    be read.
    """
    reading = {"pre_buffer": False, "buffer_size": PART_BYTES} if in_parts else {"pre_buffer": True}
    try:
        filesystem, path = storage.filesystem(uri, patient=in_parts)
        with filesystem.open_input_file(path) as source, pq.ParquetFile(source, **reading) as file:
            names = file.schema_arrow.names
            for column in columns:
                if column not in names:
                    raise DataError(
                        f"{uri} has no column {column!r}; it has {', '.join(names)}. Correct the recipe's data section"
                    )
            for column in made_by_code(file.schema_arrow, columns=columns):
                raise DataError(
                    f"{uri}: column {column!r} is {file.schema_arrow.field(column).type}, whose values code would make;"
                    " write it as plain text, numbers or lists of them"
                )
            yield file
    except storage.StorageError as error:
        raise DataError(f"cannot read {uri}: {error}") from None
    except pa.ArrowInvalid as error:
        raise DataError(
            f"{uri} is not a readable Parquet file ({_first_line(error)}); write it again as Parquet"
        ) from None
    except OSError as error:
        raise DataError(
            f"cannot read {uri}: {_first_line(error)}; check that it is there, whole, and yours to read"
        ) from None


def _strings(
    table: pa.Table,
    name: str,
    *,
    uri: str,
    first: int,
    allowed: str = "string, integer, boolean or date",
    fill: str | None = None,
) -> tuple[str, ...]:
    column = table.column(name)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not any(test(kind) for test in _TYPES[allowed]):
        raise DataError(
            f"{uri}: column {name!r} is {column.type}, allowed: {allowed}; name another column or convert it"
        )
    if column.null_count and fill is None:
        position = first + column.is_null().index(True).as_py()
        part = f" from row {first} on" if first else ""
        count = f"{column.null_count} of {table.num_rows} rows{part} (first: row {position})"
        raise DataError(f"{uri}: column {name!r} is null in {count}; fill or drop them")
    values = column.cast(kind).cast(pa.large_string()).to_pylist()
    return tuple(fill if value is None else value for value in values) if fill is not None else tuple(values)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


_TEXT = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
_TYPES = {
    "string": _TEXT,
    "string or integer": (*_TEXT, pa.types.is_integer),
    "string, integer, boolean or date": (*_TEXT, pa.types.is_integer, pa.types.is_boolean, pa.types.is_date),
}
