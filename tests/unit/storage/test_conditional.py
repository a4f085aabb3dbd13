"""Conditional writes of local files and of an object; tests/integration/storage tests them on a
real S3 server."""

from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.storage import conditional, s3
from tailorbird.storage.stored_model import FORMAT, StoredModel
from tests.conditional_writes import check_absent_file, check_concurrent_changes, check_etags

URI = "s3://lake/value.json"


class Store:
    """An object that another writer changes before each of the first `num_conflicts` conditional
    writes."""

    def __init__(self, content: bytes | None, *, num_conflicts: int = 0) -> None:
        self.content = content
        self.num_conflicts = num_conflicts

    def read_versioned(self, _uri: str) -> tuple[bytes, str] | None:
        return None if self.content is None else (self.content, str(self.num_conflicts))

    def write_if_match(self, uri: str, data: bytes, *, etag: str | None) -> str:
        if self.num_conflicts:
            self.num_conflicts -= 1
            self.content = b"[0]"
            raise s3.PreconditionFailed(uri)
        self.content = data
        return f"after {etag}"


def use(store: Store, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(conditional, "read_versioned", store.read_versioned)
    monkeypatch.setattr(conditional, "write_if_match", store.write_if_match)
    monkeypatch.setattr("time.sleep", lambda _: None)
    return store


def test_a_change_is_computed_again_if_another_writer_was_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = use(Store(None, num_conflicts=2), monkeypatch)
    assert conditional.update_bytes(URI, lambda value: (value or b"") + b"1") == b"[0]1"
    assert store.content == b"[0]1"


def test_a_change_fails_if_another_writer_is_always_first(monkeypatch: pytest.MonkeyPatch) -> None:
    use(Store(b"[]", num_conflicts=1000), monkeypatch)
    with pytest.raises(s3.StorageError, match="was changed by other writers during 50 attempts"):
        conditional.update_bytes(URI, lambda value: (value or b"") + b"1")


def test_a_local_file_is_written_only_with_its_current_etag(tmp_path: Path) -> None:
    uri = (tmp_path / "task" / "champion.json").as_uri()
    etag = check_etags(uri)
    assert storage.list_files(tmp_path.as_uri()) == [uri]
    check_absent_file(uri, etag=etag)


def test_no_change_of_a_local_file_by_concurrent_writers_is_lost(tmp_path: Path) -> None:
    check_concurrent_changes((tmp_path / "counts.json").as_uri(), num_changes=40)


class Note(StoredModel):
    text: str


def test_a_stored_value_records_its_format_and_a_newer_one_is_rejected() -> None:
    assert Note(text="a").model_dump(mode="json") == {"format": FORMAT, "text": "a"}
    with pytest.raises(ValueError, match=f"this Note has format {FORMAT + 1}"):
        Note.model_validate({"format": FORMAT + 1, "text": "a"})


def test_a_value_that_is_written_once_is_that_of_the_first_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [(tmp_path / name).as_uri() for name in ("before.json", "meanwhile.json")]
    assert storage.write_once(uris[0], Note(text="first")) == storage.write_once(
        uris[0], Note(text="second")
    )
    write = conditional.write_if_match

    def write_late(uri: str, data: bytes, *, etag: str | None) -> str:
        storage.write_bytes(uri, Note(text="first").model_dump_json().encode())
        return write(uri, data, etag=etag)

    monkeypatch.setattr(conditional, "write_if_match", write_late)
    assert storage.write_once(uris[1], Note(text="second")).text == "first"
    assert storage.read_bytes(uris[1]) == Note(text="first").model_dump_json().encode()
