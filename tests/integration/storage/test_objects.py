import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.storage import s3
from tests.conditional_writes import check_absent_file, check_concurrent_changes, check_etags


def test_an_object_is_read_whole_while_it_is_replaced(bucket: str) -> None:
    uri, contents = (
        f"{bucket}/replaced",
        [bytes([number]) * (20_000 * (number + 1)) for number in range(8)],
    )
    storage.write_bytes(uri, contents[0])
    stop = threading.Event()

    def replace_object() -> None:
        while not stop.is_set():
            for content in contents:
                storage.write_bytes(uri, content)

    with ThreadPoolExecutor(3) as pool:
        writers = [pool.submit(replace_object) for _ in range(2)]
        try:
            read = {storage.read_bytes(uri) for _ in range(200)}
        finally:
            stop.set()
    for writer in writers:
        writer.result()
    assert read <= set(contents)
    assert len(read) > 1


@pytest.mark.parametrize("read", [storage.read_bytes, storage.list_files, storage.read_json])
def test_the_error_for_a_missing_object_names_it(bucket: str, read: object) -> None:
    assert callable(read)
    with pytest.raises(s3.StorageError, match=r"/none does not exist; check the URI"):
        read(f"{bucket}/none")


CALLS = [
    storage.read_bytes,
    storage.exists,
    storage.list_files,
    storage.read_versioned,
    lambda uri: storage.write_bytes(uri, b"1"),
    lambda uri: storage.write_if_match(uri, b"1", etag=None),
]
"""A call of each kind; the argument is the URI."""


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize("use", CALLS)
def test_every_call_names_a_missing_bucket(use: object) -> None:
    assert callable(use)
    with pytest.raises(s3.StorageError, match="bucket 'no-such-bucket' does not exist"):
        use("s3://no-such-bucket/key")


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID"])
@pytest.mark.parametrize("use", CALLS)
def test_the_error_for_wrong_credentials_says_what_to_check(
    bucket: str, use: object, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(use)
    monkeypatch.setenv(name, "wrong")
    with pytest.raises(s3.StorageError, match=r"access denied by http.*; check AWS_ACCESS_KEY_ID"):
        use(f"{bucket}/key")


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid:9000"])
@pytest.mark.parametrize(
    "use", [storage.read_bytes, storage.read_versioned, lambda uri: storage.write_bytes(uri, b"1")]
)
def test_the_error_for_an_unreachable_endpoint_names_it(
    bucket: str, use: object, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(use)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(
        s3.StorageError, match=f"{endpoint} is not reachable; check AWS_ENDPOINT_URL"
    ):
        use(f"{bucket}/key")


def test_a_conditional_write_succeeds_only_with_the_current_etag(bucket: str) -> None:
    uri = f"{bucket}/folder/champion.json"
    check_absent_file(uri, etag=check_etags(uri))


@pytest.mark.parametrize("present", [False, True])
def test_exactly_one_of_several_concurrent_writers_succeeds(bucket: str, present: bool) -> None:
    uri = f"{bucket}/contested"
    etag = storage.write_if_match(uri, b"start", etag=None) if present else None

    def write(number: int) -> int | None:
        try:
            storage.write_if_match(uri, str(number).encode(), etag=etag)
        except s3.PreconditionFailed:
            return None
        return number

    with ThreadPoolExecutor(8) as pool:
        winners = [number for number in pool.map(write, range(8)) if number is not None]
    assert len(winners) == 1
    assert storage.read_bytes(uri) == str(winners[0]).encode()


def test_no_change_of_concurrent_writers_is_lost(bucket: str) -> None:
    check_concurrent_changes(f"{bucket}/counters.json", num_changes=8)


def test_a_change_that_returns_none_writes_nothing(bucket: str) -> None:
    uri = f"{bucket}/value.json"
    assert storage.update_bytes(uri, lambda value: value) is None
    assert not storage.exists(uri)
    storage.write_bytes(uri, b"[1]")
    before = storage.read_versioned(uri)
    assert storage.update_bytes(uri, lambda _: None) == b"[1]"
    assert storage.read_versioned(uri) == before


def test_the_condition_also_applies_to_a_large_object(bucket: str) -> None:
    uri, large = f"{bucket}/large", bytes(101 << 20)  # s3fs would upload it in parts
    etag = storage.write_if_match(uri, b"small", etag=None)
    storage.write_bytes(uri, b"changed")
    with pytest.raises(s3.PreconditionFailed):
        storage.write_if_match(uri, large, etag=etag)
    assert storage.read_bytes(uri) == b"changed"


def test_a_folder_is_uploaded_and_downloaded_unchanged(bucket: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep" / "er").mkdir(parents=True)
    # More than 5 MiB, so that the upload has several parts.
    contents = {
        "big": bytes(range(256)) * 50_000,
        "deep/er/small": b"x",
        "empty": b"",
        "manifest.json": b"{}",
    }
    for name, content in contents.items():
        (source / name).write_bytes(content)
    storage.upload_folder(source, f"{bucket}/folder")
    storage.download_folder(f"{bucket}/folder/", tmp_path / "target")
    names = {
        path.relative_to(tmp_path / "target").as_posix()
        for path in (tmp_path / "target").rglob("*")
        if path.is_file()
    }
    assert names == set(contents)
    for name, content in contents.items():
        assert (
            storage.sha256_file(tmp_path / "target" / name) == hashlib.sha256(content).hexdigest()
        )
