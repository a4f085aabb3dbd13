"""Conversion of columns to rows for each task, and limits of training rows."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoConfig

from tailorbird.config.data import DataConfig
from tailorbird.data.loader import read_rows
from tailorbird.data.rows import DataError, Splits, concat_rows, fingerprint, rows_sha256
from tailorbird.data.task_data import CLASSIFICATION, ChatData, data_task


def put(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path.as_uri()


def config_of(uri: str, **fields: Any) -> DataConfig:
    return DataConfig(train=uri, **fields)


def turns(*contents: str, roles: str = "uauaua") -> list[dict[str, str]]:
    names = {"u": "user", "a": "assistant", "s": "system", "t": "tool"}
    return [
        {"role": names[role], "content": content}
        for role, content in zip(roles, contents, strict=False)
    ]


def test_a_prompt_and_its_completion_are_a_conversation(tmp_path: Path) -> None:
    uri = put(
        tmp_path / "rows.parquet", prompt=["ask", "more"], completion=["tell", "it"], doc=["d", "e"]
    )
    rows = read_rows(uri, config=config_of(uri, split_by="doc"), task=ChatData())
    assert rows.conversations == ((("user", "ask"),), (("user", "more"),))
    assert (rows.texts, rows.labels, rows.split_keys) == (
        ("ask", "more"),
        ("tell", "it"),
        ("d", "e"),
    )
    assert rows.take([1]).conversations == ((("user", "more"),),)


def test_messages_are_split_into_turns_and_the_last_answer(tmp_path: Path) -> None:
    uri = put(
        tmp_path / "rows.parquet",
        chat=[turns("be kind", "hi", "hello", "bye", "ciao", roles="suaua")],
    )
    rows = read_rows(uri, config=config_of(uri, messages="chat"), task=ChatData())
    assert rows.conversations == (
        (("system", "be kind"), ("user", "hi"), ("assistant", "hello"), ("user", "bye")),
    )
    assert rows.labels == ("ciao",)
    assert rows.texts == ("be kind\nhi\nhello\nbye",)


@pytest.mark.parametrize(
    "conversation",
    [turns("hi"), turns("hi", "yes", "and"), turns("hi", " "), turns("yes", roles="a"), []],
    ids=["no answer", "ends with a question", "blank", "only an answer", "empty"],
)
def test_a_conversation_without_an_answer_is_rejected_with_its_row(
    tmp_path: Path, conversation: Any
) -> None:
    uri = put(tmp_path / "rows.parquet", messages=[turns("ok", "ok"), conversation])
    with pytest.raises(DataError, match="conversation in row 1 has no answer"):
        read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())


@pytest.mark.parametrize(
    "column",
    [
        ["plain text"],
        [turns("call", "done", roles="ut")],
        [None],
        [[{"role": "user", "content": None}]],
    ],
    ids=["text", "another role", "null", "null content"],
)
def test_a_value_that_is_not_a_list_of_turns_is_rejected(tmp_path: Path, column: Any) -> None:
    uri = put(tmp_path / "rows.parquet", messages=column)
    with pytest.raises(
        DataError, match=r"has no conversation in row 0; give a list of \{role, content\}"
    ):
        read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())


def weighted(*weights: float | None, roles: str = "uauaua") -> list[dict[str, Any]]:
    """Return a conversation with the turns "0", "1" and so on, and their weights."""
    contents = map(str, range(len(weights)))
    return [
        {**turn, "weight": w}
        for turn, w in zip(turns(*contents, roles=roles), weights, strict=True)
    ]


def test_assistant_turns_with_weight_0_are_not_trained_on(tmp_path: Path) -> None:
    column = [weighted(None, 0, None, 1), weighted(None, None, 0, 1)]
    uri = put(tmp_path / "rows.parquet", messages=column)
    rows = read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())
    assert rows.untrained_turns == ((1,), ())
    assert rows.labels == ("3", "3")
    assert rows.take([1, 0]).untrained_turns == ((), (1,))
    assert concat_rows([rows, rows]).untrained_turns == ((1,), (), (1,), ())


def test_a_conversation_ends_with_the_last_answer_that_is_trained_on(tmp_path: Path) -> None:
    uri = put(
        tmp_path / "rows.parquet",
        messages=[weighted(None, 1, None, 0), weighted(0, None, 0, None, 0, 0, roles="uauaaa")],
    )
    rows = read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())
    assert rows.labels == ("1", "3")
    assert [len(turns) for turns in rows.conversations or ()] == [1, 3]


@pytest.mark.parametrize("weights", [(None, 0), (1, 1), (None, 0.5), (None, 0, None, 0)])
def test_an_unusable_weight_is_rejected_with_its_row(
    tmp_path: Path, weights: tuple[float | None, ...]
) -> None:
    uri = put(tmp_path / "rows.parquet", messages=[weighted(None, 1), weighted(*weights)])
    with pytest.raises(DataError, match=r"has no conversation in row 1.*weight"):
        read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())


def test_weights_are_part_of_the_fingerprint_and_weights_of_1_are_not(tmp_path: Path) -> None:
    hashes = []
    for name, weights in {
        "none": (None, None, 0, 1),
        "one": (0, 1, None, None),
        "zero": (None, 0, None, 1),
    }.items():
        uri = put(tmp_path / f"{name}.parquet", messages=[weighted(*weights)])
        rows = read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())
        hashes.append(rows_sha256(rows))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_roles_of_a_conversation_are_part_of_its_fingerprint(tmp_path: Path) -> None:
    hashes = []
    for roles in ("uua", "uaa"):
        uri = put(tmp_path / f"{roles}.parquet", messages=[turns("a", "b", "c", roles=roles)])
        rows = read_rows(uri, config=config_of(uri, messages="messages"), task=ChatData())
        hashes.append(fingerprint(Splits(rows, rows, rows))["train"])
    assert hashes[0] != hashes[1]


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
    config, schema = config_of("file:///rows", messages="turns"), pa.schema([("turns", type_)])
    with (
        nullcontext()
        if fits
        else pytest.raises(
            DataError, match=r"column 'turns' has type .*, but must have lists of \{role, content\}"
        )
    ):
        ChatData().require_types(schema, config=config, uri="file:///rows")


def test_a_task_reads_its_columns_and_the_shared_ones_once() -> None:
    config = config_of("file:///rows", split_by="doc", groups=("sex", "doc"))
    assert data_task("classification").columns(config) == ["text", "label", "doc", "sex"]
    assert data_task("chat", system="be brief") == ChatData("be brief")
    assert data_task("chat").columns(config) == ["prompt", "completion", "doc", "sex"]
