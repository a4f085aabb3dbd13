"""Data files are uploaded as Parquet if all of them are valid, and not at all otherwise."""

from pathlib import Path

import pyarrow as pa
import pytest

from tailorbird.data.parquet import read_table
from tailorbird.data.rows import DataError
from tailorbird.data.upload import UploadedFile, upload_data
from tests.unit.data.parquet_rows import put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    for name in ("train", "validation", "test", "extra/more"):
        put(source / f"{name}.parquet", text=[name], label=["x"])
    (source / "NOTICE").write_text("where it is from")
    return source


def test_files_are_uploaded_to_the_same_relative_path(folder: Path, tmp_path: Path) -> None:
    target = (tmp_path / "lake" / "set").as_uri()
    uploaded = upload_data(folder, target + "/")
    assert len([path for path in (tmp_path / "lake").rglob("*") if path.is_file()]) == 4
    assert [file.uri for file in uploaded] == [
        f"{target}/{name}.parquet" for name in ("extra/more", "test", "train", "validation")
    ]
    table = read_table(f"{target}/train.parquet", columns=["text"])
    assert table.to_pylist() == [{"text": "train"}]


@pytest.mark.parametrize("name", ["not.parquet", "empty.parquet", "more.jsonl"])
def test_a_file_that_cannot_be_used_prevents_the_upload_of_all_files(
    folder: Path, tmp_path: Path, name: str
) -> None:
    path = folder / name
    if name == "empty.parquet":
        put(path, text=pa.array([], pa.string()))
    else:
        path.write_text('{"text": "a", "label": "x"}\n{"text": "b"')
    with pytest.raises(DataError, match=name):
        upload_data(folder, (tmp_path / "lake").as_uri())
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("name", ["nothing", "source/NOTICE", "empty"])
def test_a_path_without_data_files_is_rejected(folder: Path, tmp_path: Path, name: str) -> None:
    assert (folder / "NOTICE").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=name):
        upload_data(tmp_path / name, (tmp_path / "lake").as_uri())


def test_a_single_file_is_converted_to_parquet(tmp_path: Path) -> None:
    (tmp_path / "reviews.CSV").write_text("text,label\nfine,good\nbad,poor\n")
    [uploaded] = upload_data(tmp_path / "reviews.CSV", (tmp_path / "lake").as_uri())
    assert uploaded == UploadedFile(
        (tmp_path / "lake/reviews.parquet").as_uri(), "table", 2, ("text", "label")
    )
    labels = read_table(uploaded.uri, columns=["label"])["label"]
    assert labels.to_pylist() == ["good", "poor"]


def test_two_files_with_the_same_target_are_rejected(folder: Path, tmp_path: Path) -> None:
    (folder / "train.csv").write_text("text,label\na,x\n")
    with pytest.raises(DataError):
        upload_data(folder, (tmp_path / "lake").as_uri())
