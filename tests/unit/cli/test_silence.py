"""A verb that waits prints within seconds what it waits for."""

import json
import time
from pathlib import Path
from typing import Never

import pytest
from typer.testing import CliRunner

from cluster.display import console
from cluster.display.console import SILENCE_S, LogDisplay
from tailorbird import storage
from tailorbird.cli.app import app
from tailorbird.cli.options import ExitCode

RECIPE = (Path(__file__).parents[3] / "recipes" / "icd10_demo.yaml").as_uri()
RUN = "file:///nowhere/task/runs/0f3a"
VERBS = [
    *([verb, RECIPE] for verb in ("preflight", "run", "baseline", "sweep", "evaluate", "promote", "serve", "submit")),
    *([verb, RECIPE] for verb in ("watch", "reevaluate", "models", "scale")),
    ["rollback", RECIPE, "--reason", "worse"],
    ["render", RECIPE, "--to", "submit"],
    *(["report", RUN], ["verify", RUN], ["compare", RUN, RUN]),
]


@pytest.fixture
def slow_storage(monkeypatch: pytest.MonkeyPatch) -> None:
    """Storage that fails after the allowed silence."""
    now, num_ticks, tick = 0.0, 0, LogDisplay.tick

    def counted_tick(log: LogDisplay) -> None:
        nonlocal num_ticks
        tick(log)
        num_ticks += 1

    def slow(*_arguments: object, **_options: object) -> Never:
        """Take longer than the allowed silence, in the time of the display; end when it has looked at the clock."""
        nonlocal now
        now += SILENCE_S + 1
        before = num_ticks
        for _ in range(500):
            if num_ticks > before + 1:
                break
            time.sleep(0.01)
        raise ValueError("the storage does not answer")

    monkeypatch.setattr(console, "TICK_S", 0.01)
    monkeypatch.setattr(LogDisplay, "tick", counted_tick)
    monkeypatch.setitem(console.display.__wrapped__.__kwdefaults__, "clock", lambda: now)  # type: ignore[attr-defined]
    for name in ("read_bytes", "exists"):
        monkeypatch.setattr(storage, name, slow)


@pytest.mark.usefixtures("slow_storage")
@pytest.mark.parametrize("command", VERBS, ids=[command[0] for command in VERBS])
def test_a_verb_that_waits_for_storage_says_so(command: list[str]) -> None:
    done = CliRunner().invoke(app, command)
    assert (done.exit_code, "the storage does not answer" in done.stderr) == (ExitCode.USER_ERROR, True), done.output
    assert "  … " in done.stderr


@pytest.mark.usefixtures("slow_storage")
@pytest.mark.parametrize("verb", ["preflight", "run", "baseline", "sweep", "evaluate", "watch", "reevaluate"])
def test_a_verb_that_prints_its_progress_as_json_prints_no_other_lines(verb: str) -> None:
    done = CliRunner().invoke(app, [verb, RECIPE, "--json"])
    *lines, error = done.stderr.splitlines()
    assert error == "error: the storage does not answer"
    assert {json.loads(line)["event"] for line in lines} == {"activity", "alive"}
