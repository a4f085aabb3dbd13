"""Authentication by hashed API keys with scopes and expiry, and the reloading of keys."""

import asyncio
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import pytest

from serving.http import authenticator as module
from serving.http.api_keys import ApiKey, KeyScope, KeysError, new_key
from serving.http.asgi import caller
from serving.http.authenticator import ApiKeyAuthenticator, is_admin
from serving.http.schemas import RequestError
from serving.limits import RateLimiter
from tailorbird.storage.s3 import StorageError


def stored(folder: Path, *lines: str) -> str:
    path = folder / "keys"
    path.write_text("# API keys\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path.as_uri()


def authenticated(
    authenticator: ApiKeyAuthenticator, authorization: str, *, scopes: Sequence[KeyScope] = ()
) -> str | None:
    authenticator.authenticate({"authorization": authorization}, scopes=scopes)
    return caller.get()


def refused(
    authenticator: ApiKeyAuthenticator, authorization: str, *, scopes: Sequence[KeyScope] = ()
) -> RequestError:
    with pytest.raises(RequestError) as caught:
        authenticated(authenticator, authorization, scopes=scopes)
    return caught.value


def test_a_key_authenticates_and_its_hash_does_not(tmp_path: Path) -> None:
    key, line = new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()))
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert authenticated(authenticator, f"bearer  {key} ") == "app"
    assert refused(authenticator, f"Bearer {line.sha256}").status == 401


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer ü"]
)
def test_an_invalid_key_is_a_401_that_names_the_header(tmp_path: Path, authorization: str) -> None:
    key, line = new_key("app")
    error = refused(
        ApiKeyAuthenticator(stored(tmp_path, line.to_line())), authorization.format(key=key)
    )
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert error.type == ("invalid_api_key" if authorization else "missing_api_key")
    assert "Authorization: Bearer" in error.message
    assert key not in error.message
    assert error.headers == {"www-authenticate": "Bearer"}
    assert caller.get() is None


def test_a_key_is_valid_until_the_end_of_its_last_day(tmp_path: Path) -> None:
    key, line = new_key("app", options=["expires=2027-06-30", "scopes=answer,admin"])
    today = date(2027, 6, 30)
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()), today=lambda: today)
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert is_admin()
    today = date(2027, 7, 1)
    error = refused(authenticator, f"Bearer {key}")
    assert (error.status, error.type, error.code) == (401, "expired_api_key", "invalid_api_key")
    assert error.message == "the API key app expired on 2027-06-30; ask the operator for a new key"
    assert error.headers == {"www-authenticate": "Bearer"}
    assert not is_admin()


@pytest.mark.parametrize(
    ("given", "needed", "allowed"),
    [
        ("answer,feedback", ("answer",), True),
        ("answer,feedback", ("batch",), False),
        ("feedback", ("answer",), False),
        ("admin", ("answer",), False),
        ("admin", ("batch", "admin"), True),
        ("feedback", (), True),
    ],
)
def test_a_missing_scope_is_a_403_that_names_the_needed_scope(
    tmp_path: Path, given: str, needed: tuple[KeyScope, ...], allowed: bool
) -> None:
    key, line = new_key("app", options=[f"scopes={given}"])
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()))
    if allowed:
        assert authenticated(authenticator, f"Bearer {key}", scopes=needed) == "app"
        return
    error = refused(authenticator, f"Bearer {key}", scopes=needed)
    assert (error.status, error.type) == (403, "missing_scope")
    assert f"needs a key with the scope {' or '.join(needed)}" in error.message


def test_a_key_over_its_limits_is_refused_and_others_are_not(tmp_path: Path) -> None:
    (slow, slow_line), (free, free_line) = (
        new_key("slow", options=["requests=1", "texts=10"]),
        new_key("free"),
    )
    source = stored(tmp_path, slow_line.to_line(), free_line.to_line())
    authenticator = ApiKeyAuthenticator(source, limiter=RateLimiter(now=lambda: 0.0))
    assert refused(authenticator, f"Bearer {slow}", scopes=["batch"]).status == 403  # not charged
    authenticated(authenticator, f"Bearer {slow}")
    assert refused(authenticator, f"Bearer {slow}").status == 429
    for _ in range(3):
        authenticated(authenticator, f"Bearer {free}")
        authenticator.charge(texts=1000, tokens=1000)


def test_texts_are_charged_to_the_key_of_the_request(tmp_path: Path) -> None:
    (slow, slow_line), (other, other_line) = (
        new_key(name, options=["texts=10"]) for name in ("slow", "other")
    )
    source = stored(tmp_path, slow_line.to_line(), other_line.to_line())
    authenticator = ApiKeyAuthenticator(source, limiter=RateLimiter(now=lambda: 0.0))
    authenticated(authenticator, f"Bearer {slow}")
    authenticator.charge(texts=10)
    assert refused(authenticator, f"Bearer {slow}").status == 429
    assert authenticated(authenticator, f"Bearer {other}") == "other"


def test_a_reload_adds_and_removes_keys_and_reports_each_change(tmp_path: Path) -> None:
    changes: list[tuple[Sequence[ApiKey] | None, Sequence[ApiKey]]] = []
    (old, old_line), (new, new_line) = new_key("app"), new_key("app")
    authenticator = ApiKeyAuthenticator(
        stored(tmp_path, old_line.to_line()),
        record_change=lambda former, keys, _: changes.append((former, keys)),
    )
    authenticator.record()
    assert refused(authenticator, f"Bearer {new}").status == 401
    stored(tmp_path, old_line.to_line(), f"{new_line.to_line()} # from monday on")
    for _ in range(2):
        authenticator.reload()
        authenticator.record()
    assert {authenticated(authenticator, f"Bearer {key}") for key in (old, new)} == {"app"}
    stored(tmp_path, new_line.to_line())
    authenticator.reload()
    assert refused(authenticator, f"Bearer {old}").status == 401
    authenticator.record()
    assert changes == [
        (None, (old_line,)),
        ((old_line,), (old_line, new_line)),
        ((old_line, new_line), (new_line,)),
    ]


def test_a_change_that_cannot_be_recorded_is_reported_once_and_recorded_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (_, first), (_, second), (_, third) = new_key("first"), new_key("second"), new_key("third")
    recorded: list[tuple[Sequence[ApiKey] | None, Sequence[ApiKey]]] = []
    is_writable = True

    def record(former: Sequence[ApiKey] | None, keys: Sequence[ApiKey], _changed_at: str) -> None:
        if not is_writable:
            raise StorageError("access denied")
        recorded.append((former, keys))

    authenticator = ApiKeyAuthenticator(stored(tmp_path, first.to_line()), record_change=record)
    authenticator.record()
    is_writable = False
    for line in (second, third):
        stored(tmp_path, line.to_line())
        authenticator.reload()
        authenticator.record()
        assert authenticator._keys == (line,)
        assert authenticator.is_unrecorded
    (message,) = [entry.message for entry in caplog.records]
    assert "the security log cannot be written" in message
    is_writable = True
    authenticator.record()
    assert not authenticator.is_unrecorded
    assert recorded == [(None, (first,)), ((first,), (third,))]


def test_keys_are_still_reloaded_while_a_change_cannot_be_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (old, old_line), (_, new_line) = new_key("app"), new_key("other")

    def fail(*_call: object) -> None:
        raise ValueError("not recorded")

    monkeypatch.setattr(module, "RELOAD_S", 0.001)
    authenticator = ApiKeyAuthenticator(
        stored(tmp_path, old_line.to_line(), new_line.to_line()), record_change=fail
    )

    async def scenario() -> None:
        loops = [
            asyncio.create_task(loop)
            for loop in (authenticator.keep_current(), authenticator.keep_recording())
        ]
        for line in (old_line, new_line):
            stored(tmp_path, line.to_line())
            while authenticator._keys != (line,) or not authenticator.is_unrecorded:
                await asyncio.sleep(0.001)
        for loop in loops:
            loop.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert refused(authenticator, f"Bearer {old}").status == 401


@pytest.mark.parametrize("lines", [None, []])
def test_a_deleted_or_empty_file_removes_all_keys(
    tmp_path: Path, lines: list[str] | None, caplog: pytest.LogCaptureFixture
) -> None:
    (leaked, line), (good, other) = new_key("app"), new_key("other")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()))
    if lines is None:
        (tmp_path / "keys").unlink()
    else:
        stored(tmp_path, *lines)
    for _ in range(2):
        authenticator.reload()
    assert refused(authenticator, f"Bearer {leaked}").status == 401
    assert len([record for record in caplog.records if "contains no key" in record.message]) == 1
    assert authenticator.num_errors == 1
    stored(tmp_path, "nonsense", other.to_line())
    authenticator.reload()
    assert authenticated(authenticator, f"Bearer {good}") == "other"
    assert refused(authenticator, f"Bearer {leaked}").status == 401


def test_a_mistake_in_a_line_is_counted_and_locks_nobody_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (key, line), (other, other_line), (_, third) = (
        new_key("app"),
        new_key("other"),
        new_key("third"),
    )
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line(), other_line.to_line()))
    stored(tmp_path, f"{line.to_line()} texts=many", third.to_line())
    for _ in range(2):
        authenticator.reload()
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert refused(authenticator, f"Bearer {other}").status == 401
    assert authenticator.num_errors == 1
    (record,) = caplog.records
    assert "line 3: `texts` is not valid" in record.message
    stored(tmp_path, line.to_line())
    authenticator.reload()
    assert authenticator.num_errors == 0


def test_a_replica_starts_with_the_lines_that_can_be_read(tmp_path: Path) -> None:
    key, line = new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, "other oops", line.to_line()))
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert authenticator.num_errors == 1
    with pytest.raises(KeysError, match="line 3: must be `name sha256"):
        ApiKeyAuthenticator(stored(tmp_path, "other oops"))
    with pytest.raises(KeysError, match="contains no key"):
        ApiKeyAuthenticator(stored(tmp_path))


def test_while_storage_is_unavailable_the_last_keys_stay_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(_: str) -> bool:
        raise StorageError("no answer")

    key, line = new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()))
    monkeypatch.setattr(module, "exists", unavailable)
    authenticator.reload()
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert "the last keys stay valid, because the keys cannot be read: no answer" in caplog.text
