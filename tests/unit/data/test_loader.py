"""Rows and splits read from valid and broken Parquet files, and the messages of errors."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tailorbird.config.data import DataConfig
from tailorbird.data.loader import read_rows, read_splits
from tailorbird.data.parquet import has_integers, read_table
from tailorbird.data.rows import DataError, concat_rows
from tailorbird.data.splits import normalise
from tailorbird.data.task_data import ChatData
from tests.unit.data.parquet_rows import config_of, put
from tests.unit.data.test_task_data import turns


def test_a_folder_is_read_file_by_file_in_the_order_of_paths(tmp_path: Path) -> None:
    put(tmp_path / "part-1.parquet", text=["c"], label=["z"])
    put(tmp_path / "part-0.parquet", text=["a", "b"], label=["x", "y"])
    (tmp_path / "_SUCCESS").write_text("")
    rows = read_rows(tmp_path.as_uri(), config=config_of(tmp_path.as_uri()))
    assert rows.texts == ("a", "b", "c")
    assert rows.labels == ("x", "y", "z")
    assert rows.row_ids == ("0", "1", "2")
    assert rows.split_keys is None


def test_integer_labels_are_known_by_the_type_of_their_column(tmp_path: Path) -> None:
    integers = put(tmp_path / "integers.parquet", label=[1, 2])
    encoded = put(
        tmp_path / "encoded.parquet", label=pa.array([1, 2], pa.int32()).dictionary_encode()
    )
    strings = put(tmp_path / "strings.parquet", label=["1", "2"])
    assert has_integers([integers, encoded], column="label")
    assert not has_integers([strings], column="label")
    assert not has_integers([integers, strings], column="label")


def test_strings_integers_and_dictionaries_are_read_as_strings(tmp_path: Path) -> None:
    uri = put(
        tmp_path / "rows with blanks.pq",
        text=pa.array(["a", "b"], pa.large_string()),
        label=[10, 9],
        site=pa.array(["x", "x"]).dictionary_encode(),
        sex=["f", None],
    )
    config = config_of(uri, split_by="label", groups=("label", "site", "sex"))
    rows = read_rows(uri, config=config)
    assert rows.texts == ("a", "b")
    assert rows.labels == rows.split_keys == rows.groups["label"] == ("10", "9")
    assert rows.groups["site"] == ("x", "x")
    assert rows.groups["sex"] == ("f", "(none)")


def test_a_file_that_cannot_be_read_is_rejected_with_its_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    put(path, text=[f"text {number}" for number in range(1000)])
    whole = path.read_bytes()
    corrupt = whole[:10] + b"\xff" * 400 + whole[410:]
    for content in (b"", b"text,label\na,b\n", b"PAR1 not really PAR1", whole[:-100], corrupt):
        path.write_bytes(content)
        with pytest.raises(DataError, match=path.name):
            read_table(path.as_uri(), columns=["text"])


def test_a_path_without_parquet_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("text,label\n")
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(DataError, match=path.name):
            read_table(path.as_uri(), columns=["text"])


def test_files_with_different_column_types_are_rejected(tmp_path: Path) -> None:
    first = put(tmp_path / "part-0.parquet", text=["a"], label=["x"])
    second = put(tmp_path / "part-1.parquet", text=["b"], label=[1])
    for train in (tmp_path.as_uri(), (first, second)):
        with pytest.raises(DataError):
            read_splits(DataConfig(train=train))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("text", ["a", None]),
        ("label", ["x", None]),
        ("patient", ["1", None]),
        ("text", [1, 2]),
        ("label", [0.5, 1.0]),
        ("sex", [["f"], ["m"]]),
        ("text", pa.array([], pa.string())),
    ],
)
def test_a_column_with_a_null_of_another_type_or_without_rows_is_rejected_by_name(
    tmp_path: Path, column: str, values: Any
) -> None:
    names = ("text", "label", "patient", "sex")
    columns = dict.fromkeys(names, ["a", "b"][: len(values)]) | {column: values}
    uri = put(tmp_path / "rows.parquet", **columns)
    with pytest.raises(DataError, match=column if len(values) else "no rows"):
        read_rows(uri, config=config_of(uri, split_by="patient", groups=("sex",)))
    with pytest.raises(DataError, match="intent"):
        read_table(uri, columns=["intent"])


def test_omitted_validation_is_a_share_of_train_and_test_is_unchanged(tmp_path: Path) -> None:
    texts = [f"text {number}" for number in range(1000)]
    columns = {"label": ["x", "y"] * 250}
    old = put(tmp_path / "old.parquet", text=texts[:500], patient=range(500), **columns)
    new = put(tmp_path / "new.parquet", text=texts[500:], patient=range(300, 800), **columns)
    test = put(tmp_path / "test.parquet", text=["a", "b"], label=["x", "y"], patient=[5000, 5001])
    splits = read_splits(
        DataConfig(train=(old, new), test=test, validation_share=0.05, split_by="patient")
    )
    assert splits.test.texts == ("a", "b")
    assert len(splits.validation) == pytest.approx(50, abs=20)
    assert not set(splits.train.split_keys or ()) & set(splits.validation.split_keys or ())
    whole = concat_rows([splits.train, splits.validation])
    assert sorted(zip(whole.row_ids, whole.texts, strict=True), key=lambda row: int(row[0])) == [
        (str(number), text) for number, text in enumerate(texts)
    ]


def test_without_a_key_copies_of_a_text_stay_together(tmp_path: Path) -> None:
    texts = [f"Text {number % 100}" + " " * (number % 3) for number in range(300)]
    uri = put(tmp_path / "rows.parquet", text=texts, label=["x", "y", "z"] * 100)
    splits = read_splits(config_of(uri))
    assert len(splits.train) > len(splits.test) > len(splits.validation) > 0
    texts_of_splits = [{normalise(text) for text in rows.texts} for _, rows in splits.items()]
    assert sum(len(texts) for texts in texts_of_splits) == len(set.union(*texts_of_splits)) == 100


def test_conversations_with_the_same_beginning_cannot_be_split(tmp_path: Path) -> None:
    same = [turns("hello", "hi", f"question {row % 5}", "answer") for row in range(50)]
    config = config_of(put(tmp_path / "rows.parquet", messages=same), messages="messages")
    with pytest.raises(DataError):
        read_splits(config, task=ChatData())


def test_three_uris_give_three_splits_with_the_same_subsets_in_every_run(tmp_path: Path) -> None:
    uris = {}
    for name in ("train", "validation", "test"):
        texts = [f"{name} {number}" for number in range(50)]
        uris[name] = put(tmp_path / f"{name}.parquet", text=texts, label=["x"] * 50)
    data = DataConfig.model_validate(uris | {"max_validation_rows": 7, "max_test_rows": 9})
    splits = read_splits(data)
    assert splits == read_splits(data)
    for (name, rows), size in zip(splits.items(), (50, 7, 9), strict=True):
        expected = [f"{name} {row_id}" for row_id in rows.row_ids]
        assert (list(rows.texts), len(rows)) == (expected, size)
