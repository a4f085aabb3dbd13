"""Records of JSON Lines and CSV have the lines on which they start, and each fault names its
line."""

import csv
import json
from pathlib import Path

import pytest

from tailorbird.data.importing import records
from tailorbird.data.importing.records import LineFault, Record, read_records


def read(path: Path, content: str | bytes) -> list[Record | LineFault]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(path, report=lambda _: None))


def fault_of(path: Path, content: str | bytes) -> LineFault:
    [*_, last] = read(path, content)
    assert isinstance(last, LineFault)
    return last


def test_json_lines_can_have_blank_lines_a_byte_order_mark_and_no_last_line_end(
    tmp_path: Path,
) -> None:
    text = "é\u2028\x85\x0b"  # no line ends of JSON Lines
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n' + json.dumps({"a": text}, ensure_ascii=False).encode()
    assert read(tmp_path / "rows.jsonl", content) == [Record(1, {"a": 1}), Record(3, {"a": text})]
    assert fault_of(tmp_path / "rows.json", '\n [\n{"a": 1}]').line == 2  # an array


@pytest.mark.parametrize(
    "line",
    [
        '{"a": 1',
        "[1, 2]",
        '{"a": NaN}',
        '{"a": 1, "b": 2, "a": 3}',
        "[" * 100_000,
        '{"a": ' + "1" * 5000 + "}",
    ],
    ids=["cut", "list", "nan", "repeated name", "deep", "digits"],
)
def test_a_faulty_line_of_json_does_not_hide_the_next(tmp_path: Path, line: str) -> None:
    first, fault, last = read(tmp_path / "rows.jsonl", f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
    assert (first, last) == (Record(1, {"a": 1}), Record(3, {"a": 2}))
    assert isinstance(fault, LineFault)
    assert fault.line == 2


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_other_encodings_are_rejected_with_the_line_and_the_byte(
    tmp_path: Path, suffix: str
) -> None:
    first = '{"a": 1}' if suffix == "jsonl" else "text,label"
    fault = fault_of(tmp_path / f"rows.{suffix}", f"{first}\ncafé,x".encode("latin-1"))
    assert fault.line == 2
    assert "byte 4 (0xe9)" in fault.reason
    assert fault_of(tmp_path / f"rows.{suffix}", first.encode("utf-16")).line == 1


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_a_line_that_is_too_long_is_rejected_before_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    monkeypatch.setattr(records, "MAX_LINE_BYTES", 1 << 20)
    fault = fault_of(tmp_path / f"rows.{suffix}", "x" * (1 << 21))
    assert fault.line == 1
    assert "1 MiB" in fault.reason


def test_csv_fields_can_be_long_and_have_delimiters_quotes_and_line_ends(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    text = "a" * 200_000  # more than Python's default limit
    content = f'text,label\r\n"a, ""b""\nc",x\r\n\r\nd,\r\n{text},y'
    expected = [
        Record(2, {"text": 'a, "b"\nc', "label": "x"}),
        Record(5, {"text": "d", "label": None}),
        Record(6, {"text": text, "label": "y"}),
    ]
    assert read(tmp_path / "rows.csv", content) == expected
    assert csv.field_size_limit() == limit
    assert read(tmp_path / "rows.tsv", "text\tlabel\na, b\tx") == [
        Record(2, {"text": "a, b", "label": "x"})
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("text,label\na,x\nb,y,z", 3),
        ('text,label\na,x\n"b,y', 3),
        ('text,label\na,"x"y', 2),
        ("text;label\na;x", 1),
        ("text,text\na,x", 1),
        ("text,\na,x", 1),
    ],
)
def test_a_fault_of_a_csv_file_names_its_line(tmp_path: Path, content: str, line: int) -> None:
    assert fault_of(tmp_path / "rows.csv", content).line == line
