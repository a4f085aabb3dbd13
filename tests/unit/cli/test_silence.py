"""A verb that waits prints within seconds what it waits for."""

import json
import time
from pathlib import Path
from typing import Never

import pytest
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner, Result

from cluster.display import console
from cluster.display.console import SILENCE_S, Display
from cluster.local.stack import LOCK_FILE
from tailorbird.cli.app import app

RECIPE = (Path(__file__).parents[3] / "recipes" / "icd10_demo.yaml").as_uri()
RUN = "file:///nowhere/task/runs/0f3a"
FILE = "file:///nowhere/rows.parquet"
VERBS = [
    *(
        [verb, RECIPE]
        for verb in (
            "preflight",
            "run",
            "baseline",
            "sweep",
            "promote",
            "serve",
        )
    ),
    *([verb, RECIPE] for verb in ("watch", "reevaluate", "models", "iam")),
    ["rollback", RECIPE, "--reason", "worse"],
    ["render", RECIPE, "--to", "rayjob"],
    ["score", RECIPE, "--input", FILE, "--output", "file:///nowhere/scored"],
    ["audit export", RECIPE, "--to", FILE, "--days", "2026-03-01:2026-03-07"],
    ["audit import", RECIPE, FILE],
    *(["report", RUN], ["verify", RUN], ["compare", RUN, RUN]),
    ["export", "file:///nowhere/task/versions/full-1", "--to", "FOLDER/exported"],
    ["init", FILE, "--output", "FOLDER/recipe.yaml"],
    ["console", "file:///nowhere"],
    ["data put", "FOLDER/rows.csv", "file:///nowhere"],
    ["data get", FILE, "FOLDER/copy"],
    ["data icd10", "file:///nowhere"],
    ["data medquad", "FOLDER", "file:///nowhere"],
    *([f"stack {verb}", "--dir", "FOLDER"] for verb in ("up", "down")),
]
SLOW = (
    *(
        f"tailorbird.storage.{name}"
        for name in ("read_bytes", "exists", "upload_file", "download_folder")
    ),
    "tailorbird.init.inspect_data.find_splits",  # lists the files
    "tailorbird.storage.s3.require_bucket",
    "tailorbird.data.datasets.icd10.import_module",  # of the package with the terms
    "tailorbird.data.datasets.medquad.build",
    "cluster.local.stack._locked",  # waits for another command on this stack
)
"""What the commands wait for: the first access of each to storage, a package or a lock."""
FAST = {"doctor", "key", "stack status"}
"""Commands with --json that wait for nothing remote."""


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything in `SLOW` fails after the allowed silence."""
    now, num_ticks, tick = 0.0, 0, Display.tick

    def counted_tick(log: Display) -> None:
        nonlocal num_ticks
        tick(log)
        num_ticks += 1

    def fail_late(*_arguments: object, **_options: object) -> Never:
        """Take longer than the allowed silence, in the time of the display; end when it has looked
        at the clock."""
        nonlocal now
        now += SILENCE_S + 1
        before = num_ticks
        for _ in range(500):
            if num_ticks > before + 1:
                break
            time.sleep(0.01)
        raise ValueError("no answer")

    monkeypatch.setattr(console, "TICK_S", 0.01)
    monkeypatch.setattr(Display, "tick", counted_tick)
    monkeypatch.setitem(console.display.__wrapped__.__kwdefaults__, "clock", lambda: now)  # type: ignore[attr-defined]
    for name in SLOW:
        monkeypatch.setattr(name, fail_late)


def invoke(command: list[str], folder: Path, *options: str) -> Result:
    """Run a command of `VERBS` with a stack's folder, which also contains `rows.csv`."""
    folder.chmod(0o700)
    (folder / LOCK_FILE).touch()
    (folder / "rows.csv").write_text("text,label\na cat,animal\na rose,plant\n")
    verb, *arguments = command
    return CliRunner().invoke(
        app, [*verb.split(), *(part.replace("FOLDER", str(folder)) for part in arguments), *options]
    )


@pytest.mark.usefixtures("slow")
@pytest.mark.parametrize("command", VERBS, ids=[command[0] for command in VERBS])
def test_with_json_a_verb_prints_its_progress_as_json_and_no_other_lines(
    command: list[str], tmp_path: Path
) -> None:
    *lines, error = invoke(command, tmp_path, "--json").stderr.splitlines()
    assert error == "error: no answer"
    events = {json.loads(line)["event"] for line in lines}
    assert {"alive"} <= events <= {"activity", "alive"}


def test_all_verbs_with_json_are_tested() -> None:
    def with_json(group: TyperGroup, prefix: str = "") -> set[str]:
        names: set[str] = set()
        for name, command in group.commands.items():
            if isinstance(command, TyperGroup):
                names |= with_json(command, f"{prefix}{name} ")
            elif any("--json" in parameter.opts for parameter in command.params):
                names.add(prefix + name)
        return names

    group = get_command(app)
    assert isinstance(group, TyperGroup)
    assert with_json(group) == {command[0] for command in VERBS} | FAST
