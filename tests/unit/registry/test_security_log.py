"""Events of the security log. Integration tests append and read them on a real S3 server."""

import os

import pytest

from tailorbird.registry.security_log import MAX_TEXT, SecurityEvent, current_user


def test_a_user_without_a_name_is_recorded_by_uid(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert current_user() == f"uid {os.getuid()}"


def test_texts_of_clients_are_cut_and_contain_no_control_characters() -> None:
    event = SecurityEvent(kind="key", who="a\x1b[2Jb\nc\u202e", what="x" * 3000)
    assert event.who == "a [2Jb c "
    assert len(event.what) == MAX_TEXT
    assert "\x1b" not in event.line()
