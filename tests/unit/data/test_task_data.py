"""Conversion of columns to rows for each task, and limits of training rows."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from transformers import AutoConfig

from tailorbird.data.loader import read_rows
from tailorbird.data.rows import DataError, Rows, concat_rows, rows_sha256
from tailorbird.data.task_data import CLASSIFICATION, ChatData
from tests.unit.data.parquet_rows import config_of, put


def chat_rows(folder: Path, *messages: Any) -> Rows:
    uri = put(folder / "rows.parquet", messages=list(messages))
    return read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())


def turns(*contents: str, roles: str = "uauaua") -> list[dict[str, str]]:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [
        {"role": names[role], "content": content}
        for role, content in zip(roles, contents, strict=False)
    ]


def test_a_prompt_and_its_completion_are_a_conversation(tmp_path: Path) -> None:
    uri = put(tmp_path / "rows.parquet", prompt=["ask"], completion=["tell"], doc=["d"])
    rows = read_rows(uri, config=config_of(uri, split_by="doc"), task=ChatData())
    assert rows.conversations == ((("user", "ask"),),)
    assert (rows.texts, rows.labels, rows.split_keys) == (("ask",), ("tell",), ("d",))


def weighted(*weights: float | None, roles: str = "uauaua") -> list[dict[str, Any]]:
    """Return a conversation with the turns "0", "1" and so on, and their weights."""
    contents = map(str, range(len(weights)))
    return [
        {**turn, "weight": w}
        for turn, w in zip(turns(*contents, roles=roles), weights, strict=True)
    ]


@pytest.mark.parametrize(
    "conversation",
    [
        turns("hi"),
        turns("hi", "yes", "and"),
        turns("hi", " "),
        turns("yes", roles="a"),
        [],
        turns("call", "done", "ok", roles="uta"),
        None,
        [{"role": "user", "content": None}, *turns("hi", roles="a")],
        weighted(None, 0),
        weighted(1, 1),
        weighted(None, 0.5),
    ],
)
def test_a_conversation_without_an_answer_to_train_on_is_rejected_with_its_row(
    tmp_path: Path, conversation: Any
) -> None:
    with pytest.raises(DataError, match="row 1"):
        chat_rows(tmp_path, weighted(None, None), conversation)


def test_assistant_turns_with_weight_0_are_not_trained_on_and_none_is_the_last(
    tmp_path: Path,
) -> None:
    rows = chat_rows(
        tmp_path,
        weighted(None, 0, None, 1),
        weighted(None, 1, None, 0),
        weighted(0, None, 0, None, 0, 0, roles="uauaaa"),
    )
    assert concat_rows([rows, rows]).untrained_turns == ((1,), (), ()) * 2
    assert rows.labels == ("3", "1", "3")
    assert rows.texts == ("0\n1\n2", "0", "0\n1\n2")


def test_weights_and_roles_are_part_of_the_fingerprint_and_weights_of_1_are_not(
    tmp_path: Path,
) -> None:
    def hash_of(conversation: Any) -> str:
        return rows_sha256(chat_rows(tmp_path, conversation))

    plain = hash_of(weighted(None, None, 0, 1))
    assert plain == hash_of(weighted(0, 1, None, None))
    assert plain != hash_of(weighted(None, 0, None, 1))
    assert hash_of(turns("a", "b", "c", roles="uua")) != hash_of(turns("a", "b", "c", roles="uaa"))


@pytest.mark.parametrize(
    ("kind", "fields", "longest"),
    [
        ("mistral", {"sliding_window": 64}, 64),
        ("gemma3_text", {"sliding_window": 64}, 64),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, 4096),
        ("phi3", {"sliding_window": None}, 4096),
        ("modernbert", {"local_attention": 64}, 4096),
    ],
)
def test_packed_conversations_must_fit_into_the_sliding_window(
    kind: str, fields: dict[str, Any], longest: int
) -> None:
    config = AutoConfig.for_model(kind, max_position_embeddings=4096, **fields)
    task = CLASSIFICATION if kind == "modernbert" else ChatData()
    assert task.longest_row(config) == longest
    assert CLASSIFICATION.longest_row(config) == 4096


@pytest.mark.parametrize(
    ("type_", "fits"),
    [
        (pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])), True),
        (pa.list_(pa.struct([("role", pa.string())])), False),
        (pa.list_(pa.string()), False),
        (pa.string(), False),
    ],
)
def test_a_column_whose_type_cannot_contain_conversations_is_rejected(
    type_: pa.DataType, fits: bool
) -> None:
    config = config_of("file:///rows", messages="turns")
    error = nullcontext() if fits else pytest.raises(DataError, match="turns")
    with error:
        ChatData().require_types(pa.schema([("turns", type_)]), config=config, uri="file:///rows")
