import pickle
from pathlib import Path

import pytest

from cluster import s3, storage


def test_local_files_come_back_as_written(tmp_path: Path) -> None:
    uri = (tmp_path / "new folder" / "file.json").as_uri()
    storage.write_json(uri, {"a": 1})
    assert storage.read_json(uri) == {"a": 1}
    assert storage.exists(uri)
    assert storage.list_files(tmp_path.as_uri()) == [uri]
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["file.json"]


def test_local_folders_are_copied_whole(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text("1")
    storage.upload_folder(tmp_path / "a", (tmp_path / "store").as_uri())
    storage.download_folder((tmp_path / "store").as_uri(), tmp_path / "back")
    assert (tmp_path / "back" / "b" / "c").read_text() == "1"


def test_an_empty_folder_is_not_uploaded(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match="has no files"):
        storage.upload_folder(tmp_path, "s3://lake/x")
    with pytest.raises(storage.StorageError, match="is not a folder"):
        storage.upload_folder(tmp_path / "none", "s3://lake/x")


@pytest.mark.parametrize("uri", ["", "lake/a", "http://host/a", "s3://", "s3:///a", "file://relative"])
def test_a_uri_that_names_no_store_is_refused(uri: str) -> None:
    with pytest.raises(storage.StorageError, match="names no store"):
        storage.read_bytes(uri)


@pytest.mark.parametrize("uri", ["file:///tmp/a", "s3://lake", "s3://lake/"])
def test_a_conditional_write_needs_an_object_on_s3(uri: str) -> None:
    with pytest.raises(storage.StorageError, match="takes no conditional write"):
        storage.write_if_match(uri, b"", etag=None)


def test_a_missing_local_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match=r"/none is not there"):
        storage.read_bytes((tmp_path / "none").as_uri())
    assert not storage.exists((tmp_path / "none").as_uri())


def test_a_folder_read_as_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(storage.StorageError, match="check the path"):
        storage.read_bytes(tmp_path.as_uri())


def test_one_key_without_the_other_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(storage.StorageError, match="only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"):
        storage.read_bytes("s3://lake/a")


def test_an_endpoint_without_a_scheme_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(storage.StorageError, match="must begin with http"):
        storage.read_bytes("s3://lake/a")


def test_patience_with_s3_goes_along_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    for patient, attempts in ((False, 4), (True, s3.PATIENT_ATTEMPTS)):
        store, _ = storage.filesystem("s3://bucket/key", patient=patient)
        assert pickle.loads(pickle.dumps(store)).chosen.num_attempts == attempts


def test_a_number_of_attempts_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "many")
    with pytest.raises(storage.StorageError, match="AWS_MAX_ATTEMPTS is 'many'; give a number"):
        storage.filesystem("s3://bucket/key")


def test_errors_cross_process_borders() -> None:
    error = pickle.loads(pickle.dumps(storage.Conflict("lost")))
    assert isinstance(error, storage.StorageError)
    assert str(error) == "lost"


def test_an_objects_sha256_is_that_of_its_content(tmp_path: Path) -> None:
    file = tmp_path / "large"
    file.write_bytes(b"x" * (storage.CHUNK_BYTES + 3))
    assert storage.sha256_object(file.as_uri()) == storage.sha256_file(file)
