"""Seconds of the commands that only read the registry: models, report, verify and compare.

    python -m benchmarks.evaluation.reading_commands

The registry is a temporary folder with a finished run: a simulated test with gates on 1,800 rows,
its stored predictions, its versions and the code. `models` lists another task with 20 versions.
Each command is a new process, so the times include the start of Python and all imports. The CPU
seconds are those of the process with its children. `verify` recomputes the whole verdict.
"""

import os
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

import yaml

from benchmarks.rounds import finish, medians, print_table, take_turns
from tailorbird.config.loader import load_recipe
from tailorbird.storage.paths import TaskPaths
from tests.console_registry import add_version
from tests.unit.checks.finished_run import ROOT, concluded
from tests.unit.evaluation.simulated import Simulation

NUM_ROUNDS, NUM_ROWS, NUM_VERSIONS = 5, 1800, 20
COMMANDS = ("models", "report", "verify", "compare")
BOUNDS = {f"{command}_seconds": "<= 3" for command in COMMANDS}


def main() -> None:
    """Print the rounds, then one line of JSON."""
    with tempfile.TemporaryDirectory() as folder:
        task = Path(folder) / "registry" / "task"
        run = concluded(task, Simulation(num_rows=NUM_ROWS))
        recipe = _write_task_of_versions(Path(folder))
        versions = [(task / "versions" / f"{kind}-1").as_uri() for kind in ("full", "probe")]
        arguments = {"models": [str(recipe)], "report": [run], "verify": [run], "compare": versions}
        variants = {
            command: lambda command=command: _times(command, *arguments[command])
            for command in COMMANDS
        }
        results = {
            name: medians(rounds)
            for name, rounds in take_turns(variants, rounds=NUM_ROUNDS).items()
        }
    print_table(f"a run with {NUM_ROWS:,} test rows (medians of {NUM_ROUNDS} rounds)", results)
    figures = {
        f"{command}_{name}": value
        for command, each in results.items()
        for name, value in each.items()
    }
    finish("reading_commands", figures, bounds=BOUNDS)


def _write_task_of_versions(folder: Path) -> Path:
    """Write a task with `NUM_VERSIONS` versions and without a run, and return the path of its
    recipe."""
    recipe, path = ROOT / "recipes" / "icd10_demo.yaml", folder / "recipe.yaml"
    content = yaml.safe_load(recipe.read_text(encoding="utf-8")) | {
        "registry": (folder / "registry").as_uri()
    }
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    for number in range(NUM_VERSIONS):
        name = f"lora-{number:012x}"
        add_version(
            TaskPaths(load_recipe(path).task_uri), name, kind="bag_of_words", at=datetime.now(UTC)
        )
    return path


def _times(*command: str) -> dict[str, float]:
    """Return the seconds of a command in a new process."""
    before, started = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "tailorbird", *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    seconds, after = time.perf_counter() - started, os.times()
    cpu = (
        after.children_user + after.children_system - before.children_user - before.children_system
    )
    return {"seconds": seconds, "cpu_seconds": cpu}


if __name__ == "__main__":
    main()
