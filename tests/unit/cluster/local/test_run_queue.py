"""The queue of runs on an embedded stack."""

import threading
from pathlib import Path

import pytest

from cluster.local import stack
from cluster.local.run_queue import stack_in_use, turn


def test_a_second_run_waits_for_the_first_and_names_it(tmp_path: Path) -> None:
    events: list[str] = []
    noted = threading.Event()

    def note(text: str) -> None:
        events.append(text)
        noted.set()

    def second() -> None:
        with turn(tmp_path, command="tailorbird run b.yaml", note=note):
            events.append("the second runs")

    thread = threading.Thread(target=second)
    with turn(tmp_path, command="tailorbird run a.yaml", note=events.append):
        thread.start()
        assert noted.wait(timeout=60)
        events.append("the first ends")
    thread.join()
    waiting, *later = events
    assert waiting.startswith(
        "waiting for another run on this stack: tailorbird run a.yaml (process "
    )
    assert later == ["the first ends", "the second runs"]


def test_a_run_that_failed_does_not_hold_the_stack(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(ValueError, match="no rows"), turn(tmp_path, command="a", note=notes.append):
        raise ValueError("no rows")
    with turn(tmp_path, command="b", note=notes.append), turn(None, command="c", note=notes.append):
        assert notes == []


def test_only_the_environment_of_a_stack_has_a_queue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / stack.TOKEN_FILE))
    monkeypatch.setenv(stack.OWN_DASHBOARD, "http://127.0.0.1:3")
    assert stack_in_use() is None
    (tmp_path / stack.KEYS_FILE).touch()
    assert stack_in_use() == tmp_path.resolve()
    monkeypatch.delenv(stack.OWN_DASHBOARD)
    assert stack_in_use() is None
