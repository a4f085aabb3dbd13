"""What enters the ledger of looks is checked before it is stored; what is stored is told by the integration tests."""

import pytest

from tailorbird.registry import test_set_ledger
from tailorbird.registry.test_set_ledger import look, read_looks
from tailorbird.storage import s3


@pytest.mark.parametrize("given", ["", "ab", "AB" * 32, "../" + "a" * 61])
def test_what_is_no_sha256_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        look("s3://models/task", test_sha256=given, candidate="a", question="q", run="s3://r")
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        read_looks("s3://models/task", given)


def test_a_candidate_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="candidate is empty"):
        look("s3://models/task", test_sha256="a" * 64, candidate="", question="q", run="s3://r")


def test_who_is_always_second_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def beaten(uri: str, data: bytes, *, etag: str | None) -> str:
        raise s3.Conflict(f"{uri} {len(data)} {etag}")

    monkeypatch.setattr(test_set_ledger, "read_versioned", lambda uri: (b"[]", uri))
    monkeypatch.setattr(test_set_ledger, "write_if_match", beaten)
    monkeypatch.setattr(test_set_ledger, "WAIT_S", 0)
    with pytest.raises(s3.StorageError, match="changed by others at each of 50 attempts; run again"):
        look("s3://models/task", test_sha256="a" * 64, candidate="a", question="q", run="s3://r")


def test_the_same_candidate_asked_another_question_is_a_new_look(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[str, bytes] = {}

    def keep(uri: str, data: bytes, *, etag: str | None) -> str:
        assert (etag is None) == (uri not in kept)
        kept[uri] = data
        return "etag"

    monkeypatch.setattr(test_set_ledger, "read_versioned", lambda uri: (kept[uri], "etag") if uri in kept else None)
    monkeypatch.setattr(test_set_ledger, "write_if_match", keep)
    asked = ("q", "q", "a smaller gain", "q")
    numbers = [
        look("s3://models/task", test_sha256="a" * 64, candidate="a", question=question, run="s3://r").look
        for question in asked
    ]
    assert numbers == [1, 1, 2, 1]
