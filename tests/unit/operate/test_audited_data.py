"""Selection of audited rows, and the recipe that a re-evaluation proposes."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird import storage
from tailorbird.config.loader import parse_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import fingerprints
from tailorbird.data.loader import read_splits
from tailorbird.data.rows import Conversation, Rows, Splits
from tailorbird.data.task_data import data_task
from tailorbird.operate.audited_data import propose_training, usable_rows
from tests import build

AUDITED = Rows(
    row_ids=("a:0", "b:1"),
    texts=("my knee hurts", "a rash"),
    labels=("3", "1"),
    groups={"ward": ("east", "unstated")},
)


def recipe_of(folder: Path, **data: Any) -> Recipe:
    """Return a recipe whose labels and patients are integer columns."""
    train = folder / "train.parquet"
    columns = {"note": [f"note {row}" for row in range(40)], "code": [row % 4 for row in range(40)]}
    columns |= {"ward": ["west"] * 40, "patient": [row // 2 for row in range(40)]}
    columns |= {"bed": [f"bed {row // 2}" for row in range(40)], "block": ["x"] * 40}
    pq.write_table(pa.table(columns), train)
    named = {
        "train": train.as_uri(),
        "text": "note",
        "label": "code",
        "groups": ["ward"],
        "test": train.as_uri(),
    }
    return build.recipe(data=named | data)


def propose(folder: Path, recipe: Recipe, *, rows: Rows = AUDITED) -> Recipe:
    """Return the proposed recipe, with a folder as registry."""
    here = recipe.model_copy(update={"registry": folder.as_uri()})
    uri = propose_training(here, rows, uri=f"{here.task_uri}/reevaluations/today")
    text = storage.read_bytes(uri).replace(
        f"registry: {folder.as_uri()}".encode(), b"registry: s3://models"
    )
    return parse_recipe(text, path=uri)


@pytest.mark.parametrize("column", ["patient", "bed"])
def test_audited_rows_have_new_split_keys_which_dependent_rows_share(
    tmp_path: Path, column: str
) -> None:
    audited = Rows(
        ("a:0", "b:0", "c:0"),
        ("my knee", "a rash", "my eye"),
        ("3", "1", "2"),
        split_keys=("s", "t", "s"),
    )
    wider = propose(
        tmp_path,
        recipe_of(tmp_path, split_by=column),
        rows=replace(audited, groups={"ward": ("x",) * 3}),
    )
    rows = read_splits(wider.data.model_copy(update={"validation": wider.data.test})).train
    assert (rows.texts[-3:], rows.labels[-3:]) == (audited.texts, audited.labels)
    assert rows.groups["ward"] == ("west",) * 40 + ("x",) * 3
    keys = rows.split_keys
    assert keys is not None
    first, second, third = keys[-3:]
    assert first == third != second
    assert not {"s", "t", *keys[:-3]} & {first, second}


def test_a_group_value_of_the_wrong_type_becomes_null(tmp_path: Path) -> None:
    stated = replace(AUDITED, groups={"patient": ("7", "unstated")})
    wider = propose(tmp_path, recipe_of(tmp_path, groups=["patient"]), rows=stated)
    labelled = pq.read_table(Path(unquote(urlsplit(wider.data.train_uris[1]).path)))
    assert labelled["patient"].to_pylist() == [7, None]
    assert labelled.schema.field("code").type == pa.int64()


def test_a_text_is_used_once_and_not_if_it_is_in_a_split_before_redaction() -> None:
    def rows(**texts: str) -> Rows:
        return Rows(row_ids=tuple(texts), texts=tuple(texts.values()), labels=("x",) * len(texts))

    splits = Splits(
        rows(t="my card 4111 1111 1111 1111 was refused"), rows(v="a cough"), rows(e="a rash")
    )
    audited = rows(
        a="my card [number] was refused",
        b="My knee",
        c="my knee",
        f="An eye",
        d="an eye",
        e="a cough",
    )
    usable, dropped = usable_rows(audited, splits, evaluated={"d"})
    assert usable.row_ids == ("b", "d")  # not f: its text was evaluated as d
    counted = {reason: num for reason, num in dropped.items() if num}
    assert counted == {"train": 1, "validation": 1, "duplicate": 2}
    usable, dropped = usable_rows(audited, splits, learned=fingerprints(["an eye!", "a hand"]))
    assert (usable.row_ids, dropped["trained"]) == (("b",), 2)


CHAT = Rows(
    ("a:0", "b:0"),
    ("my knee", "hello\nhi\na rash"),
    ("rest", "a cream"),
    conversations=(
        (("user", "my knee"),),
        (("user", "hello"), ("assistant", "hi"), ("user", "a rash")),
    ),
)


@pytest.mark.parametrize("layout", ["messages", "prompt"])
def test_conversations_are_written_in_the_layout_of_the_training_data(
    tmp_path: Path, layout: str
) -> None:
    turns = [{"role": "user", "content": "a cough"}, {"role": "assistant", "content": "tea"}]
    columns: dict[str, Any] = {"prompt": ["a cough"], "completion": ["tea"]}
    uri = (tmp_path / "train.parquet").as_uri()
    data = {"train": uri, "test": uri}
    if layout == "messages":
        columns = {"messages": [turns]}
        data["messages"] = "messages"
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    recipe = build.recipe(task="chat", data=data, evaluation={"metric": "exact_match"})
    wider = propose(tmp_path, recipe, rows=CHAT).data
    rows = read_splits(
        wider.model_copy(update={"validation": wider.test}), task=data_task("chat")
    ).train
    added = CHAT.take([0, 1] if layout == "messages" else [0])
    assert (rows.conversations or ())[1:] == added.conversations
    assert rows.labels[1:] == added.labels


def test_a_conversation_with_a_redacted_correct_answer_is_not_used() -> None:
    usable, dropped = usable_rows(
        replace(CHAT, labels=("call [number]", "a cream")), Splits(*[Rows((), (), ())] * 3)
    )
    assert (usable.labels, dropped["redacted"]) == (("a cream",), 1)


def test_a_system_message_does_not_hide_a_row_of_a_split() -> None:
    def rows(*turns: Conversation) -> Rows:
        texts = tuple("\n".join(content for _, content in conversation) for conversation in turns)
        return Rows(
            tuple(map(str, range(len(turns)))), texts, ("rest",) * len(turns), conversations=turns
        )

    system, knee, eye = (("system", "be brief"), ("user", "my knee"), ("user", "my eye"))
    splits = Splits(rows((("system", "be kind"), knee)), rows(), rows())
    usable, dropped = usable_rows(rows((system, knee), (knee,), (system, eye), (eye,)), splits)
    assert usable.conversations == ((system, eye),)
    assert (dropped["train"], dropped["duplicate"]) == (2, 1)
