"""Tests of the checks before an access is stored; integration tests cover storing."""

import json

import pytest

from tailorbird.registry.test_set_ledger import TestSetAccess, read_test_accesses, record_test_access
from tailorbird.storage import conditional, s3

TASK_URI, SHA = "s3://models/task", "a" * 64


def access(*, candidate: str = "a", protocol: str = "q", test_sha256: str = SHA) -> TestSetAccess:
    return record_test_access(TASK_URI, test_sha256=test_sha256, candidate=candidate, protocol=protocol, run="s3://r")


@pytest.mark.parametrize("test_sha256", ["", "ab", "AB" * 32, "../" + "a" * 61])
def test_an_invalid_sha256_is_refused(test_sha256: str) -> None:
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        access(test_sha256=test_sha256)
    with pytest.raises(ValueError, match="64 hexadecimal digits"):
        read_test_accesses(TASK_URI, test_sha256)


def test_an_empty_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="candidate is empty"):
        access(candidate="")


def test_an_access_fails_if_other_writers_always_change_the_ledger_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(uri: str, data: bytes, *, etag: str | None) -> str:
        raise s3.PreconditionFailed(f"{uri} {len(data)} {etag}")

    monkeypatch.setattr(conditional, "read_versioned", lambda uri: (b'{"entries": []}', uri))
    monkeypatch.setattr(conditional, "write_if_match", refuse)
    monkeypatch.setattr(conditional, "LONGEST_WAIT_S", 0)
    with pytest.raises(s3.StorageError, match="changed by other writers during 50 attempts; try again"):
        access()


def test_the_same_candidate_with_another_protocol_is_a_new_access(monkeypatch: pytest.MonkeyPatch) -> None:
    stored: dict[str, bytes] = {}

    def write(uri: str, data: bytes, *, etag: str | None) -> str:
        assert (etag is None) == (uri not in stored)
        stored[uri] = data
        return "etag"

    monkeypatch.setattr(conditional, "read_versioned", lambda uri: (stored[uri], "etag") if uri in stored else None)
    monkeypatch.setattr(conditional, "write_if_match", write)
    assert [access(protocol=protocol).number for protocol in ("q", "q", "a smaller gain", "q")] == [1, 1, 2, 1]
    (content,) = stored.values()
    assert json.loads(content)["format"] == 1
