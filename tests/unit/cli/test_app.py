import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tailorbird.cli.app import app
from tailorbird.cli.options import ExitCode, handle_errors

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (ValueError("no such file"), ExitCode.USER_ERROR, "error: no such file\n"),
        (RuntimeError("the training failed"), ExitCode.FAILURE, "error: the training failed\n"),
        (typer.Exit(7), 7, ""),
    ],
    ids=["a user's error", "a failure", "a code of its own"],
)
def test_a_verb_ends_with_the_code_of_what_went_wrong(
    raised: Exception, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, handle_errors():
        raise raised
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == message


def test_no_help_text_holds_what_the_terminal_takes_for_markup() -> None:
    """Rich shows nothing of `[default: all]`."""
    texts = [
        text
        for path in (ROOT / "tailorbird" / "cli").glob("*.py")
        for text in re.findall(r'help="([^"]*)"', path.read_text(encoding="utf-8"))
    ]
    assert len(texts) > 20
    assert [text for text in texts if "[" in text] == []


def test_a_recipe_may_lie_in_a_store() -> None:
    """As the one does that a verdict which was made again proposes."""
    recipe = ROOT / "recipes" / "icd10_demo.yaml"
    door, change = ["--to", "submit"], "name=elsewhere"
    by_path, by_uri = (CliRunner().invoke(app, ["render", at, change, *door]) for at in (str(recipe), recipe.as_uri()))
    assert by_uri.exit_code == 0, by_uri.output
    assert by_uri.output == by_path.output
    lacking = CliRunner().invoke(app, ["render", f"{ROOT.as_uri()}/nowhere.yaml", *door])
    assert (lacking.exit_code, "is not there" in lacking.output) == (ExitCode.USER_ERROR, True), lacking.output


@pytest.mark.parametrize("name", ["a file/recipe.yaml", "a folder"])
def test_a_file_that_cannot_be_written_is_a_user_s_error(name: str, tmp_path: Path) -> None:
    (tmp_path / "a file").touch()
    (tmp_path / "a folder").mkdir()
    output = ["--output", str(tmp_path / name)]
    done = CliRunner().invoke(app, ["render", str(ROOT / "recipes" / "icd10_demo.yaml"), "--to", "submit", *output])
    assert (done.exit_code, "name a file that can be written" in done.stderr) == (ExitCode.USER_ERROR, True), (
        done.output
    )
