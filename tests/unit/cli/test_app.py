import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster import connection
from cluster.auth import SessionError
from tailorbird.cli.app import app
from tailorbird.cli.options import ExitCode, connected_recipe, handle_errors, with_json

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ValueError("no such file"), ExitCode.USER_ERROR, "error: no such file\n"),
        (RuntimeError("the training failed"), ExitCode.FAILURE, "error: the training failed\n"),
        (typer.Exit(7), 7, ""),
    ],
    ids=["user error", "failure", "explicit exit code"],
)
def test_the_exit_code_depends_on_the_error(
    raised: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, handle_errors():
        raise raised
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == message


def test_errors_and_results_contain_no_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    label = "\x1b]0;title\x07\x1b[2J\x9b31mcough\r\u202e"
    with pytest.raises(typer.Exit), handle_errors():
        raise ValueError(f"unknown label {label}\n\tcheck it")
    assert (
        capsys.readouterr().err
        == "error: unknown label \ufffd]0;title\ufffd\ufffd31mcough\ufffd\ufffd\n\tcheck it\n"
    )
    with_json(lambda: ({"label": label}, [label]))()
    with_json(lambda: ({"label": label}, []))(as_json=True)
    shown, as_json = capsys.readouterr().out.splitlines()
    assert shown == "\ufffd]0;title\ufffd\ufffd31mcough\ufffd\ufffd"
    assert json.loads(as_json) == {"label": label}
    assert as_json.isprintable()


def test_a_recipe_may_be_given_as_a_uri() -> None:
    """A re-evaluation, for example, stores a proposed recipe on S3."""
    recipe = ROOT / "recipes" / "icd10_demo.yaml"
    target, change = ["--to", "rayjob"], "name=elsewhere"
    by_path, by_uri = (
        CliRunner().invoke(app, ["render", at, change, *target])
        for at in (str(recipe), recipe.as_uri())
    )
    assert by_uri.exit_code == 0, by_uri.output
    assert by_uri.stdout == by_path.stdout
    missing = CliRunner().invoke(app, ["render", f"{ROOT.as_uri()}/nowhere.yaml", *target])
    assert (missing.exit_code, "does not exist" in missing.output) == (ExitCode.USER_ERROR, True), (
        missing.output
    )


@pytest.mark.parametrize("name", ["a file/recipe.yaml", "a folder"])
def test_an_output_file_that_cannot_be_written_is_a_user_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    output = ["--output", str(tmp_path / name)]
    done = CliRunner().invoke(
        app, ["render", str(ROOT / "recipes" / "icd10_demo.yaml"), "--to", "rayjob", *output]
    )
    assert (done.exit_code, "give the path of a writable file" in done.stderr) == (
        ExitCode.USER_ERROR,
        True,
    ), done.output


LARGE = ("ray", "torch", "transformers", "sklearn", "pandas", "scipy.stats", "statsmodels")
"""Packages that take a second or more to import."""


def test_init_imports_no_large_package() -> None:
    code = (
        f"import sys, tailorbird.init.recipe_writer; print(*sorted({set(LARGE)} & "
        "set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
)
def test_a_signal_prints_the_command_that_resumes(
    number: signal.Signals,
    code: ExitCode,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe, handler = str(ROOT / "recipes" / "icd10_demo.yaml"), signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(connection, "connect", nullcontext)
    monkeypatch.setattr(
        sys, "argv", ["/usr/bin/tailorbird", "run", "my task.yaml", "tuning.num_trials=2"]
    )
    with pytest.raises(typer.Exit) as ended, handle_errors(), connected_recipe(recipe, None):
        signal.raise_signal(number)
    assert ended.value.exit_code == code
    assert (
        "To resume: tailorbird run 'my task.yaml' tuning.num_trials=2\n" in capsys.readouterr().err
    )
    assert signal.getsignal(signal.SIGTERM) == handler


def test_ctrl_c_in_another_command_is_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, handle_errors():
        raise KeyboardInterrupt
    assert (ended.value.exit_code, capsys.readouterr().err) == (
        ExitCode.INTERRUPTED,
        "\ninterrupted\n",
    )


@pytest.mark.parametrize(
    ("error", "hinted"), [(SessionError("no cluster"), True), (ValueError("no recipe"), False)]
)
def test_an_error_of_the_connection_comes_with_a_hint(
    error: Exception,
    hinted: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(connection, "stack_hint", lambda _folder: "export TAILORBIRD_HOME=/there")
    with pytest.raises(typer.Exit), handle_errors():
        raise error
    assert ("hint: export TAILORBIRD_HOME=/there\n" in capsys.readouterr().err) is hinted
