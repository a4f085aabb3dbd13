"""Reports and stored pages on this machine, and downloads."""

import json
import subprocess
import sys
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tailorbird.cli.app import app
from tailorbird.cli.options import ExitCode
from tailorbird.evaluation.statistics import means
from tailorbird.evaluation.verdict import power
from tests.unit.checks.finished_run import ROOT, concluded
from tests.unit.cli.test_app import LARGE
from tests.unit.evaluation.simulated import Simulation


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URI of a finished run in a local folder. Its verdict is computed with few random draws."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(means, "NUM_FLIPS", 200)
        patched.setattr(power, "NUM_TESTS", 50)
        yield concluded(tmp_path_factory.mktemp("registry") / "task", Simulation(num_rows=200))


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_report_is_written_to_a_file(run: str, tmp_path: Path) -> None:
    file = tmp_path / "verdict.html"
    assert f"{run}/report.html is in {file}\n" in invoke("report", f"{run}/", "--output", str(file))
    assert file.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


COMMANDS = """
import json, sys
from tailorbird.cli.app import app
from tailorbird.evaluation.statistics import means
from tailorbird.evaluation.verdict import power
means.NUM_FLIPS, power.NUM_TESTS = 200, 50
commands, large = map(json.loads, sys.argv[1:])
for command in commands:
    app(command, standalone_mode=False)
    print("imported by", command[0], *sorted(set(large) & set(sys.modules)))
"""
"""A program that runs commands and prints which large packages they import; its verdict is that of
`run`."""


def test_commands_that_only_read_import_no_large_package(run: str) -> None:
    commands = [["report", run], ["verify", run], ["compare", run, run]]
    code = [sys.executable, "-c", COMMANDS, json.dumps(commands), json.dumps(LARGE)]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
    imported = [line for line in done.stdout.splitlines() if line.startswith("imported by")]
    assert imported == [f"imported by {command[0]}" for command in commands]


def test_open_shows_a_copy_of_the_page_in_the_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, opened = tmp_path / "monitoring" / "monitoring.html", list[str]()
    page.parent.mkdir()
    page.write_text("<p>no alarm</p>")

    def record(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr(webbrowser, "open", record)
    copy = json.loads(invoke("report", page.as_uri(), "--open", "--json"))["file"]
    assert opened == [Path(copy).as_uri()]
    assert (Path(copy) != page, Path(copy).read_text()) == (True, "<p>no alarm</p>")


def test_open_without_a_browser_names_the_file(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webbrowser, "open", lambda _url: False)
    done = CliRunner().invoke(app, ["report", run, "--open"])
    assert done.exit_code == ExitCode.USER_ERROR
    assert "no browser can be started on this machine; the page is in /" in done.stderr


def test_a_file_and_a_folder_are_downloaded_into_a_new_folder(tmp_path: Path) -> None:
    stored, target = tmp_path / "stored", tmp_path / "got"
    (stored / "part").mkdir(parents=True)
    for name in ("a.parquet", "part/b.parquet"):
        (stored / name).write_text(name)
    assert invoke("data", "get", stored.as_uri(), str(target)).split() == [
        str(target / "a.parquet"),
        str(target / "part" / "b.parquet"),
    ]
    assert (target / "part" / "b.parquet").read_text() == "part/b.parquet"
    invoke("data", "get", (stored / "a.parquet").as_uri(), str(tmp_path / "one"))
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["a.parquet"]
    again = CliRunner().invoke(app, ["data", "get", stored.as_uri(), str(target)])
    assert (again.exit_code, "give a new folder" in again.stderr) == (ExitCode.USER_ERROR, True)
