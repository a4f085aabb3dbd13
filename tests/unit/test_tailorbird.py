import pytest
import typer

from tailorbird import FAILURE, USER_ERROR, fails_clearly


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (ValueError("no such file"), USER_ERROR, "error: no such file\n"),
        (RuntimeError("the training failed"), FAILURE, "error: the training failed\n"),
        (typer.Exit(7), 7, ""),
    ],
    ids=["a user's error", "a failure", "a code of its own"],
)
def test_a_verb_ends_with_the_code_of_what_went_wrong(
    raised: Exception, code: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @fails_clearly
    def verb() -> None:
        raise raised

    with pytest.raises(typer.Exit) as ended:
        verb()
    assert ended.value.exit_code == code
    assert capsys.readouterr().err == told
