"""Who may ask: keys are stored by their hashes, read again while a replica runs, and limited one by one."""

from pathlib import Path

import pytest

from serving.keys import Door, KeysError, new_key, read_keys
from serving.protocol import RequestError


class Clock:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def stored(folder: Path, *lines: str) -> str:
    path = folder / "keys"
    path.write_text("# who may ask\n\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return path.as_uri()


def refused(door: Door, authorization: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        door.admit(authorization)
    return caught.value


def test_a_key_opens_and_its_hash_does_not(tmp_path: Path) -> None:
    key, line = new_key("app")
    door = Door(stored(tmp_path, line.to_line()))
    assert door.admit(f"Bearer {key}") == line
    assert door.admit(f"bearer  {key} ").name == "app"
    assert key not in line.to_line()
    assert refused(door, f"Bearer {line.sha256}").status == 401


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer ", "Basic {key}", "{key}", "Bearer {key}x", "Bearer ü"]
)
def test_whatever_is_no_key_is_a_401_that_says_how_to_give_one(tmp_path: Path, authorization: str) -> None:
    key, line = new_key("app")
    error = refused(Door(stored(tmp_path, line.to_line())), authorization.format(key=key))
    assert (error.status, error.code) == (401, "invalid_api_key")
    assert "Authorization: Bearer" in error.message
    assert key not in error.message
    assert dict(error.headers) == {b"www-authenticate": b"Bearer"}


def test_keys_are_made_at_random() -> None:
    assert len({new_key("app")[0] for _ in range(100)}) == 100


def test_keys_are_changed_while_it_runs(tmp_path: Path) -> None:
    (old, old_line), (new, new_line) = new_key("app"), new_key("app")
    door = Door(stored(tmp_path, old_line.to_line()))
    assert refused(door, f"Bearer {new}").status == 401
    stored(tmp_path, old_line.to_line(), f"{new_line.to_line()} # from monday on")
    door.reload()
    assert {door.admit(f"Bearer {key}").name for key in (old, new)} == {"app"}
    stored(tmp_path, new_line.to_line())
    door.reload()
    assert refused(door, f"Bearer {old}").status == 401


@pytest.mark.parametrize("lines", [[], ["nonsense"]])
def test_keys_that_cannot_be_read_again_stay(
    tmp_path: Path, lines: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    key, line = new_key("app")
    door = Door(stored(tmp_path, line.to_line()))
    stored(tmp_path, *lines)
    door.reload()
    door.reload()
    assert door.admit(f"Bearer {key}") == line
    assert len([record for record in caplog.records if "those read last stay" in record.message]) == 1


def test_the_environment_may_hold_them(monkeypatch: pytest.MonkeyPatch) -> None:
    key, line = new_key("app", per_minute=3)
    monkeypatch.setenv("SOME_KEYS", f"{line.to_line()}\n")
    assert read_keys("env://SOME_KEYS") == (line,)
    assert Door("env://SOME_KEYS").admit(f"Bearer {key}").per_minute == 3
    with pytest.raises(KeysError, match=r"has no OTHER_KEYS, which the recipe's serving section names"):
        read_keys("env://OTHER_KEYS")


def test_faults_name_the_line_and_do_not_show_it(tmp_path: Path) -> None:
    key, line = new_key("app")
    with pytest.raises(KeysError, match="line 4: must be `name sha256") as caught:
        read_keys(stored(tmp_path, line.to_line(), f"app {key}"))
    assert key not in str(caught.value)
    with pytest.raises(KeysError, match="holds no key"):
        read_keys(stored(tmp_path))
    with pytest.raises(KeysError, match="stands there twice"):
        read_keys(stored(tmp_path, line.to_line(), f"other {line.sha256}"))


@pytest.mark.parametrize(("name", "per_minute"), [("", None), ("two words", None), ("a#b", None), ("app", 0)])
def test_what_could_not_be_read_again_is_not_made(name: str, per_minute: int | None) -> None:
    with pytest.raises(KeysError, match="cannot be stored"):
        new_key(name, per_minute=per_minute)


def test_a_limit_is_of_one_key_and_fills_evenly(tmp_path: Path) -> None:
    (slow, slow_line), (free, free_line) = new_key("slow", per_minute=6), new_key("free")
    clock = Clock()
    door = Door(stored(tmp_path, slow_line.to_line(), free_line.to_line()), now=clock)
    for _ in range(6):
        door.admit(f"Bearer {slow}")
    error = refused(door, f"Bearer {slow}")
    assert (error.status, error.code) == (429, "rate_limit_exceeded")
    assert "slow may ask 6 times a minute" in error.message
    waited = int(dict(error.headers)[b"retry-after"])
    for _ in range(20):
        door.admit(f"Bearer {free}")
    clock.s += waited
    door.admit(f"Bearer {slow}")
    assert refused(door, f"Bearer {slow}").status == 429
    clock.s += 3600
    for _ in range(6):
        door.admit(f"Bearer {slow}")
    assert refused(door, f"Bearer {slow}").status == 429
