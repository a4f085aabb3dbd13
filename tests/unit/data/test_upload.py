"""A folder of Parquet files is uploaded completely or not at all."""

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


def test_files_are_uploaded_to_the_same_relative_path(folder: Path, tmp_path: Path) -> None:
    target = (tmp_path / "lake" / "set").as_uri()
    uris = upload_parquet_folder(folder, target + "/")
    assert uris == [f"{target}/{name}.parquet" for name in ("extra/more", "test", "train", "validation")]
    assert read_table(f"{target}/train.parquet", columns=["text"]).to_pylist() == [{"text": "train"}]


def test_only_parquet_is_uploaded(folder: Path, tmp_path: Path) -> None:
    upload_parquet_folder(folder, (tmp_path / "lake").as_uri())
    assert {path.suffix for path in (tmp_path / "lake").rglob("*") if path.is_file()} == {".parquet"}


def test_a_second_upload_replaces_the_files(folder: Path, tmp_path: Path) -> None:
    target = (tmp_path / "lake").as_uri()
    upload_parquet_folder(folder, target)
    pq.write_table(pa.table({"text": ["new"], "label": ["x"]}), folder / "train.parquet")
    upload_parquet_folder(folder, target)
    assert read_table(f"{target}/train.parquet", columns=["text"]).to_pylist() == [{"text": "new"}]


def test_a_file_that_is_not_parquet_prevents_the_upload(folder: Path, tmp_path: Path) -> None:
    (folder / "validation.parquet").write_text("text,label")
    with pytest.raises(DataError, match=r"validation.parquet is not a valid Parquet file"):
        upload_parquet_folder(folder, (tmp_path / "lake").as_uri())
    assert not (tmp_path / "lake").exists()


def test_a_file_without_rows_prevents_the_upload(folder: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), folder / "test.parquet")
    with pytest.raises(DataError, match=r"test.parquet has no rows"):
        upload_parquet_folder(folder, (tmp_path / "lake").as_uri())
    assert not (tmp_path / "lake").exists()


def test_a_folder_without_parquet_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"contains no \*\.parquet file"):
        upload_parquet_folder(tmp_path, (tmp_path / "lake").as_uri())


def test_a_missing_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not a folder"):
        upload_parquet_folder(tmp_path / "nothing", (tmp_path / "lake").as_uri())


def test_an_unreachable_server_raises_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    with pytest.raises(StorageError, match="is not reachable"):
        upload_parquet_folder(folder, "s3://lake/set")
