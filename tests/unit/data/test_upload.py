"""A folder of Parquet goes up whole or not at all."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.data.parquet import read_table
from tailorbird.data.rows import DataError
from tailorbird.data.upload import upload_parquet_folder
from tailorbird.storage.s3 import StorageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = tmp_path / "source"
    (source / "extra").mkdir(parents=True)
    for name in ("train", "validation", "test", "extra/more"):
        pq.write_table(pa.table({"text": [name], "label": ["x"]}), source / f"{name}.parquet")
    (source / "NOTICE").write_text("where it is from")
    return source


def test_files_arrive_at_the_same_relative_path(folder: Path, tmp_path: Path) -> None:
    target = (tmp_path / "lake" / "set").as_uri()
    uris = upload_parquet_folder(folder, target + "/")
    assert uris == [f"{target}/{name}.parquet" for name in ("extra/more", "test", "train", "validation")]
    assert read_table(f"{target}/train.parquet", columns=["text"]).to_pylist() == [{"text": "train"}]


def test_only_parquet_is_uploaded(folder: Path, tmp_path: Path) -> None:
    upload_parquet_folder(folder, (tmp_path / "lake").as_uri())
    assert {path.suffix for path in (tmp_path / "lake").rglob("*") if path.is_file()} == {".parquet"}


def test_putting_again_replaces(folder: Path, tmp_path: Path) -> None:
    target = (tmp_path / "lake").as_uri()
    upload_parquet_folder(folder, target)
    pq.write_table(pa.table({"text": ["new"], "label": ["x"]}), folder / "train.parquet")
    upload_parquet_folder(folder, target)
    assert read_table(f"{target}/train.parquet", columns=["text"]).to_pylist() == [{"text": "new"}]


def test_a_file_that_is_not_parquet_stops_the_whole_folder(folder: Path, tmp_path: Path) -> None:
    (folder / "validation.parquet").write_text("text,label")
    with pytest.raises(DataError, match=r"validation.parquet is not a readable Parquet file"):
        upload_parquet_folder(folder, (tmp_path / "lake").as_uri())
    assert not (tmp_path / "lake").exists()


def test_a_file_without_rows_stops_the_whole_folder(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "test.parquet")
    with pytest.raises(DataError, match=r"test.parquet has no rows"):
        upload_parquet_folder(folder, (tmp_path / "lake").as_uri())
    assert not (tmp_path / "lake").exists()


def test_a_folder_without_parquet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \*\.parquet file"):
        upload_parquet_folder(tmp_path, (tmp_path / "lake").as_uri())


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        upload_parquet_folder(tmp_path / "nothing", (tmp_path / "lake").as_uri())


def test_a_store_that_is_not_reached_is_told_and_not_taken_for_done(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StorageError, match="cannot be reached"):
        upload_parquet_folder(folder, "s3://lake/set")
