"""Files in the formats of OpenAI, ShareGPT and Alpaca and tables are converted; what cannot be kept
is refused."""

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.config.data import DataConfig
from tailorbird.data.importing import convert
from tailorbird.data.importing.convert import check_file, write_parquet
from tailorbird.data.loader import read_rows
from tailorbird.data.rows import DataError
from tailorbird.data.task_data import ChatData


def json_lines(folder: Path, *rows: Any) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def converted(path: Path) -> pa.Table:
    schema = check_file(path, report=ignore)
    write_parquet(path, path.with_suffix(".parquet"), schema=schema, report=ignore)
    return pq.read_table(path.with_suffix(".parquet"))


def ignore(*_: object) -> None:
    pass


def openai(*turns: tuple[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **fields}


ASKED = (("user", "hi"), ("assistant", "hello"))
QUESTION, ANSWER = [{"role": role, "content": content} for role, content in ASKED]
SYSTEM = {"role": "system", "content": "be kind"}
TURNS = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


PARTS = {"role": "user", "content": [{"type": "text", "text": "hi"}]}


@pytest.mark.parametrize(
    ("row", "question"),
    [
        (openai(("developer", "be kind"), *ASKED, tools=[], functions=None), "hi"),
        ({"messages": [SYSTEM, PARTS, {**ANSWER, "refusal": None}]}, "hi"),
        ({"system": "be kind", "conversations": TURNS}, "hi"),
        (
            {"system": "be kind", "instruction": "Say", "input": "hi", "output": "hello"},
            "Say\n\nhi",
        ),
    ],
    ids=["empty tools", "parts", "sharegpt", "alpaca"],
)
def test_each_chat_format_becomes_messages(tmp_path: Path, row: Any, question: str) -> None:
    table = converted(json_lines(tmp_path, row))
    messages = [SYSTEM, {"role": "user", "content": question}, ANSWER]
    assert table.to_pylist() == [{"messages": messages}]


def test_alpaca_can_be_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("instruction,input,output,topic\nSay,hi,hello,greeting\nhi,,hello,\n")
    assert converted(path).to_pylist() == [
        {"messages": [{"role": "user", "content": "Say\n\nhi"}, ANSWER], "topic": "greeting"},
        {"messages": [QUESTION, ANSWER], "topic": None},
    ]


def test_weights_are_kept_and_are_absent_if_no_line_has_one(tmp_path: Path) -> None:
    turns = [QUESTION, {**ANSWER, "weight": 0}, QUESTION, {**ANSWER, "weight": 1.0}]
    path = json_lines(tmp_path, openai(*ASKED), {"messages": turns})
    table = converted(path)
    weights = [[turn["weight"] for turn in row] for row in table["messages"].to_pylist()]
    assert weights == [[None, None], [None, 0, None, 1]]
    uri = path.with_suffix(".parquet").as_uri()
    rows = read_rows(uri, config=DataConfig(train=uri, messages="messages"), task=ChatData())
    assert rows.untrained_turns == ((), (1,))
    plain = converted(json_lines(tmp_path, openai(*ASKED)))
    assert "weight" not in str(plain.schema)


def test_further_columns_keep_their_types(tmp_path: Path) -> None:
    values: list[dict[str, Any]] = [
        {"id": 1, "topic": None, "is_new": True, "score": 1},
        {"id": 2, "topic": "a", "is_new": None, "score": 0.5, "later": "x"},
    ]
    table = converted(json_lines(tmp_path, *(openai(*ASKED, **row) for row in values)))
    assert table.drop_columns(["messages"]).to_pylist() == [
        {"id": 1, "topic": None, "is_new": True, "score": 1.0, "later": None},
        {"id": 2, "topic": "a", "is_new": None, "score": 0.5, "later": "x"},
    ]
    assert table.schema.field("score").type == pa.float64()


@pytest.mark.parametrize(
    "row",
    [
        openai(*ASKED, tools=[{"type": "function"}]),
        {"messages": [QUESTION, {**ANSWER, "tool_calls": [{"id": "1"}]}]},
        openai(("user", "a"), ("tool", "b"), ("assistant", "c")),
        openai(("user", [{"type": "image_url"}]), ("assistant", "c")),
        {"messages": [{**QUESTION, "name": "Ann"}, ANSWER]},
        {"messages": [QUESTION, {**ANSWER, "weight": 0.5}]},
        openai(("user", "a")),
        {"messages": "hi"},
        {"messages": ["hi", "hello"]},
        openai(*ASKED, tags=["a"]),
        openai(*ASKED, number=2**63),
        openai(("user", "\ud800"), ("assistant", "b")),
        openai(*ASKED, **{"": 1}),
        {"conversations": [{"from": "observation", "value": "a"}]},
        {"instruction": "a", "output": 3},
        {"instruction": "a", "output": "b", "history": [["c", "d"]]},
        {"input": {"messages": [QUESTION]}, "preferred_output": [ANSWER]},
        {"text": 1, "label": "x"},  # a column with two types
    ],
)
def test_a_line_that_cannot_be_kept_is_refused_with_its_number(tmp_path: Path, row: Any) -> None:
    first: dict[str, Any] = dict.fromkeys(row, "a")
    if "messages" in row:
        first = openai(*ASKED)
    elif "conversations" in row:
        first = {"conversations": TURNS}
    with pytest.raises(DataError, match="line 2"):
        check_file(json_lines(tmp_path, first, row), report=ignore)


def test_the_first_faults_are_listed_and_all_are_counted(tmp_path: Path) -> None:
    faulty = [{"text": "another format", "label": "x"}, *[openai(("user", "a"))] * 6]
    path = json_lines(tmp_path, openai(*ASKED), *faulty)
    with pytest.raises(DataError, match=r"(?s)line 2.*line 6.*2 more$") as error:
        check_file(path, report=ignore)
    assert "line 7" not in str(error.value)


@pytest.mark.parametrize("content", ["", "\n\n", "text,label\n", '{"text": "a"}\n', None])
def test_a_file_without_rows_or_with_one_column_or_unreadable_is_refused(
    tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / ("rows.jsonl" if content and content.startswith("{") else "rows.csv")
    if content is None:
        path.symlink_to(tmp_path)
    else:
        path.write_text(content)
    with pytest.raises(DataError, match=path.name):
        check_file(path, report=ignore)


def test_an_integer_that_a_column_of_numbers_cannot_represent_is_refused(tmp_path: Path) -> None:
    rows = [{"text": "a", "n": 0.5}, {"text": "b", "n": 2**53 + 1}]
    with pytest.raises(DataError):
        converted(json_lines(tmp_path, *rows))


@pytest.mark.parametrize(
    "change", [[openai(*ASKED)] * 2, [openai(*ASKED, id="a")], [openai(("user", "a"))]]
)
def test_a_file_that_changes_between_check_and_conversion_is_refused(
    tmp_path: Path, change: Any
) -> None:
    path = json_lines(tmp_path, openai(*ASKED, id=1))
    schema = check_file(path, report=ignore)
    json_lines(tmp_path, *change)
    with pytest.raises(DataError):
        write_parquet(path, tmp_path / "rows.parquet", schema=schema, report=ignore)


def test_rows_are_written_in_groups_of_bounded_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "GROUP_ROWS", 3)
    monkeypatch.setattr(convert, "GROUP_CHARACTERS", 1000)
    rows = [{"text": str(number), "label": "x"} for number in range(7)]
    rows += [{"text": "a" * 1000, "label": "y"}] * 2
    assert converted(json_lines(tmp_path, *rows)).to_pylist() == rows
    metadata = pq.read_metadata(tmp_path / "rows.parquet")
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert sizes == [3, 3, 2, 1]


def test_the_memory_of_a_conversion_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "GROUP_CHARACTERS", 1 << 20)
    row = json.dumps(openai(("user", "a" * 20_000), ("assistant", "b"))) + "\n"
    path = tmp_path / "rows.jsonl"
    path.write_text(row)
    converted(path)  # imports modules
    path.write_text(row * 1_500)
    in_arrow = []
    tracemalloc.start()
    try:
        schema = check_file(path, report=ignore)
        write_parquet(
            path,
            tmp_path / "rows.parquet",
            schema=schema,
            report=lambda *_: in_arrow.append(pa.total_allocated_bytes()),
        )
        peak = tracemalloc.get_traced_memory()[1] + max(in_arrow) - in_arrow[0]
    finally:
        tracemalloc.stop()
    assert schema.num_rows == 1_500
    assert peak < path.stat().st_size / 3
