"""Lines of the key file, its mistakes, and local callers."""

from datetime import date
from pathlib import Path

import pytest

from serving.http.api_keys import (
    ApiKey,
    KeyOptions,
    KeysError,
    keys_in_force,
    new_key,
    parse_keys,
    read_keys,
    require_local_caller,
    require_own_page,
    sha256_of,
)
from serving.http.schemas import RequestError

ALL_OPTIONS = (
    "tokens=1000000",
    "texts=10000",
    "requests=600",
    "expires=2027-06-30",
    "scopes=admin,batch",
)


def parsed(*lines: str) -> tuple[ApiKey, ...]:
    file = parse_keys("\n".join(("# API keys", "", *lines)).encode(), source="keys")
    assert file.errors == ()
    return file.keys


def test_a_line_is_read_as_it_was_written() -> None:
    key, stored = new_key("app", options=ALL_OPTIONS)
    assert stored.options == KeyOptions(("batch", "admin"), date(2027, 6, 30), 600, 10000, 1000000)
    line = stored.to_line()
    assert line == (
        f"app {sha256_of(key)} scopes=batch,admin expires=2027-06-30 requests=600 texts=10000 "
        "tokens=1000000"
    )
    assert parsed(line) == (stored,)
    assert key not in line


def test_a_key_without_options_may_answer_and_give_feedback_without_end_or_limit() -> None:
    (key,) = parsed(f"app {'0' * 64} # since monday")
    assert key.options == KeyOptions(("answer", "feedback"), None, None, None, None)


def test_new_keys_are_random() -> None:
    assert len({new_key("app")[0] for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("600", "option 1 is unknown; the options are scopes=answer,batch,feedback,read,admin"),
        ("scope=answer", "option 1 is unknown"),
        ("scopes=", "`scopes` is not valid"),
        ("scopes=answer,root", "`scopes` is not valid"),
        ("expires=2027-02-30", "`expires` is not valid"),
        ("expires=20270630", "`expires` is not valid"),
        ("requests=0", "`requests` is not valid"),
        ("texts=1.5", "`texts` is not valid"),
        ("tokens=-1", "`tokens` is not valid"),
        ("texts=1 texts=2", "`texts` is given twice"),
    ],
)
def test_an_unknown_option_is_an_error_that_names_the_line_and_what_is_allowed(
    option: str, message: str
) -> None:
    file = parse_keys(
        f"good {'1' * 64}\napp {'0' * 64} {option}".encode(), source="s3://bucket/keys"
    )
    assert [key.name for key in file.keys] == ["good"]
    (error,) = file.errors
    assert error.startswith(f"s3://bucket/keys, line 2: {message}")
    with pytest.raises(KeysError, match=r"not valid|unknown|twice"):
        new_key("app", options=option.split())


@pytest.mark.parametrize("name", ["", "two words", "a#b", "ä", "x" * 65])
def test_a_key_with_a_name_that_could_not_be_read_is_not_made(name: str) -> None:
    with pytest.raises(KeysError, match="is not valid: a name has"):
        new_key(name)


def test_an_error_gives_the_line_number_and_not_the_line(tmp_path: Path) -> None:
    key, line = new_key("app")
    path = tmp_path / "keys"
    path.write_text(f"# API keys\n\n{line.to_line()}\napp {key}\n{key}\napp {line.sha256} {key}\n")
    file = read_keys(path.as_uri())
    assert file.keys == (line,)
    assert [error.split(": ", 1)[0][-6:] for error in file.errors] == ["line 4", "line 5", "line 6"]
    assert "must be `name sha256 [options]`" in file.errors[0]
    assert key not in "".join(file.errors)
    (duplicate,) = parse_keys(
        f"{line.to_line()}\nother {line.sha256}".encode(), source="keys"
    ).errors
    assert duplicate == "keys, line 2: duplicate key"


@pytest.mark.parametrize(
    ("content", "in_force"),
    [
        ("", ""),  # an empty file
        ("# none\n", ""),
        ("nonsense", "app-1 app-2 other"),  # no line can be read
        ("o1", "other"),
        ("o1\nnonsense", "other"),  # removed keys stay removed
        ("o1\napp oops", "app-1 app-2 other"),
        ("o1\napp oops\na1", "app-1 app-2 other"),
        ("o1\nnew oops", "other"),  # nobody is let in
        ("a1\nother oops texts=-1", "app-1 other"),
        (f"o1\nthe app {'a' * 64}", "app-1 app-2 other"),  # mistakes in the name
        (f"o1\nà pp {'b' * 64}", "app-2 other"),
        (f"o1\n{'a' * 64} app", "app-1 app-2 other"),
        (f"o1\n'application {'a' * 64}'", "app-1 other"),
        ("o1\n'app' oops", "app-1 app-2 other"),
        ("o1\nnew oops scopes=predict, app", "other"),  # a word of an option is no name
        ("\ufeffa1\no1", "app-1 other"),  # an editor has added a byte order mark
    ],
)
def test_a_line_that_cannot_be_read_neither_adds_nor_removes_a_key(
    content: str, in_force: str
) -> None:
    former = {
        "app-1": ApiKey("app", "a" * 64),
        "app-2": ApiKey("app", "b" * 64),
        "other": ApiKey("other", "c" * 64),
    }
    for short, name in (("a1", "app-1"), ("o1", "other")):
        content = content.replace(short, former[name].to_line())
    keys = keys_in_force(parse_keys(content.encode(), source="keys"), former=list(former.values()))
    assert {key.sha256 for key in keys} == {former[name].sha256 for name in in_force.split()}
    assert len(keys) == len(in_force.split())


def test_a_file_in_another_encoding_leaves_all_keys_in_force() -> None:
    former = [ApiKey("app", "a" * 64)]
    assert keys_in_force(
        parse_keys(former[0].to_line().encode("utf-16"), source="keys"), former=former
    ) == (*former,)


def test_an_environment_variable_can_contain_the_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    _, line = new_key("app", options=["requests=3"])
    monkeypatch.setenv("SOME_KEYS", f"{line.to_line()}\n")
    assert read_keys("env://SOME_KEYS").keys == (line,)
    with pytest.raises(
        KeysError,
        match=r"environment variable OTHER_KEYS, which the recipe's serving section names, is not set",
    ):
        read_keys("env://OTHER_KEYS")


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
        ("127.0.0.1:8000#.evil.example", "", False),
        ("localhost.evil.example", "", False),
        ("[::1", "", False),
        ("127.0.0.1:8000", "http://[", False),
        ("127.0.0.1:8000", "//[::1", False),
        ("", "", False),
    ],
)
def test_without_keys_only_local_same_origin_requests_are_accepted(
    host: str, origin: str, allowed: bool
) -> None:
    headers = {"host": host, "origin": origin}
    if allowed:
        require_local_caller(headers)
        return
    with pytest.raises(
        RequestError, match=r"without API keys, only requests to 127\.0\.0\.1"
    ) as caught:
        require_local_caller(headers)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),  # not a browser
        ({"origin": "https://api.example"}, True),
        ({"origin": "https://API.example:8443"}, True),
        (
            {
                "origin": "https://chat.example",
                "x-forwarded-host": "front.example, Chat.example:443",
            },
            True,
        ),
        (
            {"origin": "https://chat.example", "sec-fetch-site": "same-origin"},
            True,
        ),  # the gateway has changed Host
        ({"sec-fetch-site": "none"}, True),
        ({"origin": "https://evil.example"}, False),
        ({"origin": "https://api.example.evil.example"}, False),
        ({"origin": "null"}, False),
        ({"origin": ""}, False),
        ({"origin": "http://["}, False),
        ({"origin": "https://api.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://chat.example", "sec-fetch-site": "same-site"}, False),
    ],
)
def test_behind_a_gateway_pages_of_other_origins_are_refused(
    headers: dict[str, str], allowed: bool
) -> None:
    given = {"host": "api.example"} | headers
    if allowed:
        require_own_page(given)
        return
    with pytest.raises(RequestError, match="pages of other origins are not accepted") as caught:
        require_own_page(given)
    assert (caught.value.status, caught.value.type) == (403, "foreign_page")
