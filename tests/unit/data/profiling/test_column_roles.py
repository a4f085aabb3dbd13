"""Samples of files, and the roles of their columns."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.data.profiling import sample as profile
from tailorbird.data.profiling.column_roles import ColumnRoles, infer_column_roles
from tailorbird.data.profiling.sample import Sample, count_rows, read_sample
from tailorbird.data.rows import DataError
from tests.unit.data.parquet_rows import put

NUM = 400
WORDS = [f"the {n}th customer asks for help with a thing" for n in range(NUM)]


@pytest.fixture
def sampled(tmp_path: Path) -> Any:
    def make(**columns: Any) -> Sample:
        return read_sample(put(tmp_path / "rows.parquet", **columns))

    return make


def cycle(n: int) -> list[str]:
    """Return values that cycle through `n` names."""
    return [f"value {index % n}" for index in range(NUM)]


def names(roles: ColumnRoles) -> dict[str, str]:
    """Return the name of each column that the task reads."""
    parts = ("text", "label", "prompt", "completion", "messages")
    return {part: role.name for part in parts if (role := getattr(roles, part)) is not None}


@pytest.mark.parametrize(
    ("columns", "options", "expected"),
    [
        ({"id": list(range(NUM)), "text": WORDS, "label": cycle(3)}, {}, ("text", "label")),
        ({"note": WORDS, "sex": cycle(2), "queue": cycle(7)}, {}, ("note", "queue")),
        (
            {"text": WORDS, "summary": WORDS, "label": cycle(3), "team": cycle(5)},
            {"text": "summary", "label": "team"},
            ("summary", "team"),
        ),
        # Answers of one word are labels.
        ({"question": WORDS, "answer": ["yes", "no"] * (NUM // 2)}, {}, ("question", "answer")),
    ],
)
def test_a_text_and_a_label_are_chosen_by_option_name_and_values(
    sampled: Any, columns: Any, options: Any, expected: tuple[str, str]
) -> None:
    roles = infer_column_roles(sampled(**columns), **options)
    assert names(roles) == dict(zip(("text", "label"), expected, strict=True))
    assert roles.task == "classification"


def test_conversations_and_pairs_are_a_chat_task(sampled: Any) -> None:
    turns = [
        [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
        for text in WORDS
    ]
    assert names(infer_column_roles(sampled(messages=turns, topic=cycle(3)))) == {
        "messages": "messages"
    }
    roles = infer_column_roles(sampled(question=WORDS, answer=WORDS, source=cycle(3)))
    assert names(roles) == {"prompt": "question", "completion": "answer"}
    assert roles.task == "chat"


def test_groups_and_split_keys_follow_from_the_number_of_values_with_known_names_first(
    sampled: Any,
) -> None:
    columns = {"text": WORDS, "label": cycle(3), "shift": cycle(2), "language": cycle(6)}
    columns |= {"town": cycle(39), "batch": cycle(100), "patientId": cycle(150)}
    doc: list[str | None] = [None, *cycle(100)[1:]]  # a split key has no nulls
    roles = infer_column_roles(sampled(row=list(range(NUM)), doc=doc, **columns))
    assert [role.name for role in roles.groups] == ["language", "shift"]
    assert [role.name for role in roles.keys] == ["patientId", "batch"]


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        ({"size": list(range(NUM))}, {}),
        ({"text": WORDS, "vector": [0.5] * NUM}, {}),
        ({"text": WORDS, "label": WORDS}, {"label": "topic"}),
        ({"text": WORDS, "n": [1] * NUM}, {"text": "n"}),
    ],
)
def test_columns_that_cannot_be_inferred_raise_an_error(
    sampled: Any, columns: Any, options: Any
) -> None:
    with pytest.raises(DataError):
        infer_column_roles(sampled(**columns), **options)


def test_a_sample_has_the_usable_columns_and_the_names_of_the_others(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", text=["a b", None], n=[1, 1], vector=[0.5, 0.5])
    sample = read_sample(tmp_path.as_uri())
    assert [(column.name, column.values) for column in sample.columns] == [
        ("text", ("a b", None)),
        ("n", ("1", "1")),
    ]
    assert sample.unusable == ("vector (double)",)
    text = sample.column("text")
    assert text is not None
    assert (text.num_null, text.mean_words) == (1, 2.0)


def test_row_groups_beyond_the_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "SAMPLE_ROWS", 25)
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"n": list(range(40))}), tmp_path / f"{name}.parquet", row_group_size=10
        )
    sample = read_sample(tmp_path.as_uri())
    assert (sample.num_rows, sample.num_sampled, sample.is_whole) == (80, 30, False)
    assert count_rows(tmp_path.as_uri()) == 80
