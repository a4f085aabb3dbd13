"""API keys: their file, authentication and reloads, events of their changes, and local callers."""

import asyncio
import json
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import pytest

from serving.http import authenticator as module
from serving.http.api_keys import (
    ApiKey,
    KeyOptions,
    KeyScope,
    KeysError,
    keys_in_force,
    new_key,
    parse_keys,
    parse_options,
    read_keys,
    require_local_caller,
    require_same_origin,
    sha256_of,
)
from serving.http.asgi import caller
from serving.http.authenticator import ApiKeyAuthenticator, is_admin
from serving.http.key_changes import log_key_change
from serving.http.schemas import RequestError

OPTIONS = "scopes=read,admin expires=2027-06-30 requests=600 texts=10000 tokens=1000000"
KEYS = {
    "a1": ApiKey("app", "a" * 64),
    "a2": ApiKey("app", "b" * 64),
    "o1": ApiKey("other", "c" * 64),
}
Changes = list[tuple[Sequence[ApiKey] | None, Sequence[ApiKey]]]


def test_a_line_is_read_as_it_was_written() -> None:
    key, stored = new_key("app", options=OPTIONS.split()[::-1])
    line = stored.to_line()
    assert line == f"app {sha256_of(key)} {OPTIONS}"
    file = parse_keys(f"# API keys\n\n{line} # since monday\nb {'0' * 64}".encode(), source="keys")
    assert (file.keys[0], file.errors) == (stored, ())
    assert file.keys[1].options == KeyOptions(scopes=("answer", "feedback"))
    assert new_key("app")[0] != new_key("app")[0]
    for name in ("", "two words", "a#b", "ä", "x" * 65):
        with pytest.raises(KeysError):
            new_key(name)


def test_an_error_gives_the_line_number_and_not_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, line = new_key("app")
    content = f"# API keys\n\n{line.to_line()}\napp {key}\nb {line.sha256}\napp {line.sha256} {key}"
    (tmp_path / "keys").write_text(content)
    monkeypatch.setenv("SOME_KEYS", content)
    for source in ((tmp_path / "keys").as_uri(), "env://SOME_KEYS"):
        file = read_keys(source)
        assert file.keys == (line,)
        lines = [error.split(": ", 1)[0][-6:] for error in file.errors]
        assert lines == ["line 4", "line 5", "line 6"]
        assert key not in "".join(file.errors)
    with pytest.raises(KeysError):
        read_keys("env://OTHER_KEYS")


@pytest.mark.parametrize(
    ("content", "in_force"),
    [
        ("# none\n", ""),
        ("nonsense", "a1 a2 o1"),  # no line can be read
        ("{o1}\nnonsense", "o1"),  # removed keys stay removed
        ("{o1}\n'app' oops", "a1 a2 o1"),
        ("{o1}\napp oops\n{a1}", "a1 a2 o1"),
        ("{o1}\nnew oops", "o1"),  # nobody is let in
        (f"{{o1}}\nà pp {'b' * 64}", "a2 o1"),  # a mistake in the name
        ("{o1}\nnew oops scopes=predict, app", "o1"),  # a word of an option is no name
        ("\ufeff{a1}\n{o1}", "a1 o1"),  # an editor has added a byte order mark
    ],
)
def test_a_line_that_cannot_be_read_neither_adds_nor_removes_a_key(
    content: str, in_force: str
) -> None:
    lines = {name: key.to_line() for name, key in KEYS.items()}
    file = parse_keys(content.format(**lines).encode(), source="keys")
    keys = keys_in_force(file, previous=list(KEYS.values()))
    assert sorted(key.sha256 for key in keys) == [KEYS[name].sha256 for name in in_force.split()]


def is_refused(check: Callable[[dict[str, str]], None], headers: dict[str, str]) -> bool:
    try:
        check(headers)
    except RequestError as error:
        return (error.status, error.type) == (403, "foreign_page")
    return False


LOCAL = "127.0.0.1:8000"
CHAT = "https://chat.example"


@pytest.mark.parametrize(
    ("host", "origin", "is_allowed"),
    [
        (LOCAL, "", True),
        ("[::1]:8000", "http://[::1]:8000", True),
        (LOCAL, "null", False),
        (LOCAL, "http://127.0.0.1:9000", False),
        (LOCAL, "//[::1", False),
        ("evil.example:8000", "http://evil.example:8000", False),
        ("127.0.0.1:8000#.evil.example", "", False),
        ("localhost.evil.example", "", False),
        ("", "", False),
    ],
)
def test_without_keys_only_local_same_origin_requests_are_accepted(
    host: str, origin: str, is_allowed: bool
) -> None:
    assert is_refused(require_local_caller, {"host": host, "origin": origin}) != is_allowed


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ({}, True),  # not a browser
        ({"origin": "https://API.example:8443"}, True),
        ({"origin": CHAT, "x-forwarded-host": "front.example, Chat.example:443"}, True),
        ({"origin": CHAT, "sec-fetch-site": "same-origin"}, True),  # the gateway has changed Host
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "https://api.example.evil.example"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://["}, False),
        ({"origin": "https://api.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": CHAT, "sec-fetch-site": "same-site"}, False),
    ],
)
def test_behind_a_gateway_pages_of_other_origins_are_refused(
    headers: dict[str, str], is_allowed: bool
) -> None:
    assert is_refused(require_same_origin, {"host": "api.example"} | headers) != is_allowed


def stored(folder: Path, *keys: ApiKey | str) -> str:
    """Store lines of keys at once, and return the URI of their file."""
    lines = [key.to_line() if isinstance(key, ApiKey) else key for key in keys]
    (folder / "written").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return (folder / "written").replace(folder / "keys").as_uri()


def authenticated(
    authenticator: ApiKeyAuthenticator, key: str, *, scopes: Sequence[KeyScope] = ()
) -> str | None:
    authenticator.authenticate({"authorization": f"Bearer {key}"}, scopes=scopes)
    return caller.get()


def refused(
    authenticator: ApiKeyAuthenticator, key: str, *, scopes: Sequence[KeyScope] = ()
) -> tuple[int, str]:
    with pytest.raises(RequestError) as caught:
        authenticated(authenticator, key, scopes=scopes)
    return caught.value.status, caught.value.type


def test_a_key_authenticates_and_its_hash_does_not(tmp_path: Path) -> None:
    key, line = new_key("app")
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line))
    for valid in (f"Bearer {key}", f"bearer  {key} "):
        authenticator.authenticate({"authorization": valid}, scopes=())
        assert caller.get() == "app"
    invalid = ("", "Bearer ", f"Basic {key}", key, f"Bearer {key}x", "Bearer ü")
    for authorization in (*invalid, f"Bearer {line.sha256}"):
        with pytest.raises(RequestError) as caught:
            authenticator.authenticate({"authorization": authorization}, scopes=())
        error = caught.value
        assert (error.status, error.code) == (401, "invalid_api_key")
        assert error.type == ("invalid_api_key" if authorization else "missing_api_key")
        assert key not in error.message
        assert error.headers == {"www-authenticate": "Bearer"}
        assert caller.get() is None


def test_a_key_needs_the_scope_and_is_valid_until_the_end_of_its_last_day(tmp_path: Path) -> None:
    key, line = new_key("app", options=["expires=2027-06-30", "scopes=feedback,admin"])
    today = date(2027, 6, 30)
    authenticator = ApiKeyAuthenticator(stored(tmp_path, line), today=lambda: today)
    for scopes in ((), ("feedback",), ("read", "admin")):
        assert authenticated(authenticator, key, scopes=scopes) == "app"
    assert is_admin()
    assert refused(authenticator, key, scopes=["answer", "read"]) == (403, "missing_scope")
    today = date(2027, 7, 1)
    assert refused(authenticator, key) == (401, "expired_api_key")
    assert not is_admin()


def test_each_change_of_the_keys_is_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [new_key(name)[1] for name in ("first", "second", "third")]
    changes: Changes = []
    monkeypatch.setattr(module, "RELOAD_S", 0.001)
    authenticator = ApiKeyAuthenticator(
        stored(tmp_path, lines[0]), on_change=lambda *change: changes.append(change)
    )

    async def scenario() -> None:
        loop = asyncio.create_task(authenticator.keep_current())
        for line in lines[1:]:
            stored(tmp_path, line)
            while authenticator._keys != (line,):
                await asyncio.sleep(0.001)
        loop.cancel()

    asyncio.run(asyncio.wait_for(scenario(), 30))
    first, second, third = ((line,) for line in lines)
    assert changes == [(None, first), (first, second), (second, third)]


def changed_key(name: str, digit: str, *options: str) -> ApiKey:
    return ApiKey(name, digit * 64, parse_options(options))


def test_a_change_of_keys_has_the_options_before_and_after_without_hashes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    same = changed_key("same", "2")
    previous = [
        changed_key("old", "1"),
        same,
        changed_key("app", "3", "texts=5"),
        changed_key("rotated", "4"),
    ]
    new = [
        changed_key("new", "5", "scopes=read"),
        same,
        changed_key("app", "3", "texts=9"),
        changed_key("rotated", "6"),
    ]
    log_key_change(previous, new, task="icd10")
    log_key_change(None, new[:1], task="icd10")
    change, start = (json.loads(record.getMessage()) for record in caplog.records)
    default = "scopes=answer,feedback"
    assert change == {
        "event": "keys",
        "task": "icd10",
        "at_start": False,
        "before": {"app": [f"{default} texts=5"], "old": [default], "rotated": [default]},
        "after": {
            "app": [f"{default} texts=9"],
            "new": ["scopes=read"],
            "rotated": [default],
        },
    }
    assert (start["at_start"], start["before"], start["after"]) == (
        True,
        {},
        {"new": ["scopes=read"]},
    )
    assert not any(key.sha256 in caplog.text for key in (*previous, *new))
