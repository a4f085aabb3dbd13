import pickle
from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.storage import objects, s3


def test_other_users_can_neither_enter_a_downloaded_folder_nor_read_a_written_file(
    tmp_path: Path,
) -> None:
    source, copy = (tmp_path / name for name in ("source", "copy"))
    for name in ("row.json", "deep/inner/row.json"):
        storage.write_json((source / name).as_uri(), {"a": 1})
    storage.download_folder(source.as_uri(), copy)
    assert [path.stat().st_mode & 0o777 for path in (source / "row.json", copy)] == [0o600, 0o700]
    assert storage.read_json((copy / "deep/inner/row.json").as_uri()) == {"a": 1}


@pytest.mark.parametrize(
    "uri", ["", "lake/a", "http://host/a", "s3://", "s3:///a", "file://relative"]
)
def test_an_invalid_uri_is_rejected(uri: str) -> None:
    with pytest.raises(s3.StorageError, match="is not a valid URI"):
        storage.read_bytes(uri)


def test_an_access_key_without_a_secret_key_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)
    with pytest.raises(
        s3.StorageError, match="only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    ):
        storage.read_bytes("s3://lake/a")


def test_an_endpoint_without_a_scheme_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with pytest.raises(s3.StorageError, match="must start with http"):
        storage.read_bytes("s3://lake/a")


def test_the_retry_policy_is_pickled_with_the_filesystem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "4")
    for policy, attempts in ((s3.STANDARD, 4), (s3.PERSISTENT, s3.PERSISTENT.min_attempts)):
        store, _ = s3.filesystem("s3://bucket/key", retry_policy=policy)
        assert pickle.loads(pickle.dumps(store)).chosen.num_attempts == attempts


def test_a_pickled_filesystem_has_no_credentials_and_uses_those_of_the_reader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, f"the-drivers-{name}")
    pickled = pickle.dumps(s3.filesystem("s3://bucket/key")[0])
    assert b"the-drivers" not in pickled
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-workers")
    assert pickle.loads(pickled).chosen.secret_key == "the-workers"


@pytest.mark.parametrize(
    "key",
    ["../x", "a/../../x", "a/..", "./x", "a//x", "/etc/x", "a\\x", "..\\x", "a\0x", "a/\0/x", ""],
)
def test_a_key_outside_the_folder_is_not_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    base = (tmp_path / "store").as_uri()
    monkeypatch.setattr(
        objects, "list_files", lambda _: [f"{base}/safe", f"{base}/{key}"]
    )  # S3 can list such keys
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "safe").write_text("1")
    with pytest.raises(s3.StorageError, match="would be stored outside its local folder"):
        storage.download_folder(base, tmp_path / "deep" / "copy")
    assert list((tmp_path / "deep").iterdir()) == []
