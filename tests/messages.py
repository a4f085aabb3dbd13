"""The messages of all errors that the product raises, with the place of each.

    python -m tests.messages    # rewrite tests/messages.txt

A message is tested once, by the table: a changed text changes a line of it, which a reviewer reads.
Tests of the code that raises assert the class of the error and the field that it names.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "tests" / "messages.txt"
PACKAGES = ("cluster", "serving", "tailorbird", "training", "tuning")


def table() -> str:
    """Return one line per raised message: file, function, class of the error, and text."""
    lines: list[str] = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            name = path.relative_to(ROOT).as_posix()
            lines += [f"{name}: {line}" for line in _messages(tree, function="")]
    return "\n".join(lines) + "\n"


def _messages(node: ast.AST, *, function: str) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call):
            for argument in child.exc.args:
                text = _text(argument)
                if text is not None:
                    yield f"{function} | {ast.unparse(child.exc.func)} | {text}"
        name = function
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = child.name
        yield from _messages(child, function=name)


def _text(argument: ast.expr) -> str | None:
    """Return the text with `{expression}` for each value, or None if it is not a literal."""
    if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
        return argument.value.replace("\n", "\\n")
    if not isinstance(argument, ast.JoinedStr):
        return None
    parts: list[str] = []
    for part in argument.values:
        if isinstance(part, ast.FormattedValue):
            parts.append("{" + ast.unparse(part.value) + "}")
        else:
            assert isinstance(part, ast.Constant)
            parts.append(str(part.value))
    return "".join(parts).replace("\n", "\\n")


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
