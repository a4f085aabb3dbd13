"""Authentication by hashed API keys, reloading of keys, and rate limits."""

from pathlib import Path

import pytest

from serving.http import api_keys
from serving.http.api_keys import ApiKeyAuthenticator, KeysError, new_key, read_keys, require_local_caller
from serving.http.schemas import RequestError
from tailorbird.storage.s3 import StorageError


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def stored(folder: Path, *lines: str) -> str:
    path = folder / "keys"
    path.write_text("# API keys\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path.as_uri()


def authenticated(authenticator: ApiKeyAuthenticator, authorization: str) -> str:
    return authenticator.authenticate({"authorization": authorization})


def refused(authenticator: ApiKeyAuthenticator, authorization: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        authenticated(authenticator, authorization)
    return caught.value


def test_a_key_authenticates_and_its_hash_does_not(tmp_path: Path) -> None:
    key, line = new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()))
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert authenticated(authenticator, f"bearer  {key} ") == "app"
    assert key not in line.to_line()
    assert refused(authenticator, f"Bearer {line.sha256}").status == 401


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer ü"]
)
def test_an_invalid_key_is_a_401_that_names_the_header(tmp_path: Path, authorization: str) -> None:
    key, line = new_key("app")
    error = refused(ApiKeyAuthenticator(stored(tmp_path, line.to_line())), authorization.format(key=key))
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert "Authorization: Bearer" in error.message
    assert key not in error.message
    assert error.headers == {"www-authenticate": "Bearer"}


def test_new_keys_are_random() -> None:
    assert len({new_key("app")[0] for _ in range(100)}) == 100


def test_a_reload_adds_and_removes_keys(tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = new_key("app"), new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, old_line.to_line()))
    assert refused(authenticator, f"Bearer {new}").status == 401
    stored(tmp_path, old_line.to_line(), f"{new_line.to_line()} # from monday on")
    authenticator.reload()
    assert {authenticated(authenticator, f"Bearer {key}") for key in (old, new)} == {"app"}
    stored(tmp_path, new_line.to_line())
    authenticator.reload()
    assert refused(authenticator, f"Bearer {old}").status == 401


@pytest.mark.parametrize("lines", [None, [], ["nonsense"]])
def test_a_removed_key_is_refused_even_if_the_file_is_invalid(
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
    assert len([record for record in caplog.records if "could not be reloaded" in record.message]) == 1
    stored(tmp_path, "nonsense", other.to_line())
    authenticator.reload()
    assert authenticated(authenticator, f"Bearer {good}") == "other"


def test_while_storage_is_unavailable_the_last_keys_stay_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unavailable(_: str) -> bool:
        raise StorageError("no answer")

    key, line = new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line.to_line()))
    monkeypatch.setattr(api_keys, "exists", unavailable)
    authenticator.reload()
    assert authenticated(authenticator, f"Bearer {key}") == "app"
    assert "the last keys stay valid: no answer" in caplog.text


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("127.0.0.1:8000", "", True),
        ("localhost:8000", "http://localhost:8000", True),
        ("[::1]:8000", "", True),
        ("127.0.0.1:8000", "https://evil.example", False),
        ("127.0.0.1:8000", "null", False),
        ("127.0.0.1:8000", "http://127.0.0.1:9000", False),
        ("evil.example:8000", "http://evil.example:8000", False),
        ("", "", False),
    ],
)
def test_without_keys_only_local_same_origin_requests_are_accepted(host: str, origin: str, allowed: bool) -> None:
    headers = {"host": host, "origin": origin}
    if allowed:
        require_local_caller(headers)
        return
    with pytest.raises(RequestError, match=r"without API keys, only requests to 127\.0\.0\.1") as caught:
        require_local_caller(headers)
    assert caught.value.status == 403


def test_an_environment_variable_can_contain_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = new_key("app", per_minute=3)
    monkeypatch.setenv("SOME_KEYS", f"{line.to_line()}\n")
    assert read_keys("env://SOME_KEYS") == (line,)
    assert authenticated(ApiKeyAuthenticator("env://SOME_KEYS"), f"Bearer {key}") == "app"
    with pytest.raises(
        KeysError, match=r"environment variable OTHER_KEYS, which the recipe's serving section names, is not set"
    ):
        read_keys("env://OTHER_KEYS")


def test_an_error_gives_the_line_number_and_not_the_line(tmp_path: Path) -> None:
    key, line = new_key("app")
    with pytest.raises(KeysError, match="line 4: must be `name sha256") as caught:
        read_keys(stored(tmp_path, line.to_line(), f"app {key}"))
    assert key not in str(caught.value)
    with pytest.raises(KeysError, match="contains no key"):
        read_keys(stored(tmp_path))
    with pytest.raises(KeysError, match="line 4: duplicate key"):
        read_keys(stored(tmp_path, line.to_line(), f"other {line.sha256}"))


@pytest.mark.parametrize(("name", "per_minute"), [("", None), ("two words", None), ("a#b", None), ("app", 0)])
def test_a_key_that_could_not_be_read_is_not_made(name: str, per_minute: int | None) -> None:
    with pytest.raises(KeysError, match="is not valid"):
        new_key(name, per_minute=per_minute)


def test_a_rate_limit_applies_per_key_and_refills_evenly(tmp_path: Path) -> None:
    (slow, slow_line), (free, free_line) = new_key("slow", per_minute=6), new_key("free")
    clock = Clock()
    authenticator = ApiKeyAuthenticator(stored(tmp_path, slow_line.to_line(), free_line.to_line()), now=clock)
    for _ in range(6):
        authenticated(authenticator, f"Bearer {slow}")
    error = refused(authenticator, f"Bearer {slow}")
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert "slow is limited to 6 requests a minute" in error.message
    waited = int((error.headers or {})["retry-after"])
    for _ in range(20):
        authenticated(authenticator, f"Bearer {free}")
    clock.s += waited
    authenticated(authenticator, f"Bearer {slow}")
    assert refused(authenticator, f"Bearer {slow}").status == 429
    clock.s += 3600
    for _ in range(6):
        authenticated(authenticator, f"Bearer {slow}")
    assert refused(authenticator, f"Bearer {slow}").status == 429
