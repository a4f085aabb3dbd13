"""Mutation check: how many small changes of the code do the unit tests detect?

    python -m tests.mutation [--number 200] [--seed 1] [--processes 2]

Each mutation changes one expression of a file of `TARGETS`: a comparison, an operator, a condition
or a number. It is killed if a test fails or takes too long, and survives otherwise. Only the tests
that run the changed line are run. The check works on copies of the
tracked files.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = {
    "tailorbird/evaluation/verdict": ["tests/unit/evaluation"],
    "tailorbird/evaluation/statistics": ["tests/unit/evaluation"],
    "tailorbird/evaluation/gates": ["tests/unit/evaluation"],
    "tailorbird/registry": ["tests/unit/registry"],
    "tailorbird/data/splits.py": ["tests/unit/data"],
    "tailorbird/storage": ["tests/unit/storage", "tests/unit/registry"],
    "training/engine": ["tests/unit/training"],
}
"""Mutated files or folders, and the tests that are run for them."""

LINES = "MUTATION_LINES"
"""Environment variable with the file to which a run of the tests writes the lines of each test."""

TIMEOUT_S = 120

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}


@dataclass(frozen=True)
class Mutation:
    """A changed expression of a file, by its position and its new source."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int
    source: str

    def apply(self, text: str) -> str:
        lines = text.encode().splitlines(keepends=True)
        start = sum(map(len, lines[: self.line - 1])) + self.column
        end = sum(map(len, lines[: self.end_line - 1])) + self.end_column
        content = text.encode()
        return (content[:start] + self.source.encode() + content[end:]).decode()


def mutations_of(file: str) -> list[Mutation]:
    """Return the possible mutations of a file in order, without those of annotations and
    messages."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    changes: list[Mutation] = []
    for node in _expressions(tree):
        changed = _changed(node)
        if changed is not None:
            assert node.end_lineno is not None
            assert node.end_col_offset is not None
            position = (node.lineno, node.col_offset, node.end_lineno, node.end_col_offset)
            changes.append(Mutation(file, *position, source=f"({ast.unparse(changed)})"))
    return changes


def _expressions(node: ast.AST) -> Iterator[ast.expr]:
    for name, value in ast.iter_fields(node):
        if name in {"annotation", "returns", "type_params"}:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom):
                continue
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST):
                yield from _expressions(child)


def _changed(node: ast.expr) -> ast.expr | None:
    match node:
        case ast.Compare(left=left, ops=[operator], comparators=comparators):
            return ast.Compare(left, [COMPARISONS[type(operator)]()], comparators)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            return ast.BinOp(left, OPERATORS[type(op)](), right)
        case ast.BoolOp(op=ast.And(), values=values):
            return ast.BoolOp(ast.Or(), values)
        case ast.BoolOp(op=ast.Or(), values=values):
            return ast.BoolOp(ast.And(), values)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return operand
        case ast.IfExp(test=test, body=body, orelse=orelse):
            return ast.IfExp(test, orelse, body)
        case ast.Constant(value=bool() as value):
            return ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            return ast.Constant(value + 1)
    return None


class LineRecorder:
    """Pytest plugin: write the lines of the targets that each test runs."""

    def __init__(self) -> None:
        self.tests: dict[str, list[str]] = defaultdict(list)
        self.lines: set[tuple[str, int]] = set()
        self.files = tuple(str(ROOT / target) for target in TARGETS)

    def _enter(self, frame: Any, _event: str, _argument: object) -> Any:
        return self._record if frame.f_code.co_filename.startswith(self.files) else None

    def _record(self, frame: Any, _event: str, _argument: object) -> Any:
        self.lines.add((frame.f_code.co_filename, frame.f_lineno))
        return self._record

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        self.lines.clear()
        threading.settrace(self._enter)
        sys.settrace(self._enter)
        result = yield
        sys.settrace(None)
        for file, line in self.lines:
            self.tests[f"{Path(file).relative_to(ROOT)}:{line}"].append(item.nodeid)
        return result

    def pytest_sessionfinish(self) -> None:
        Path(os.environ[LINES]).write_text(json.dumps(self.tests))


def pytest_configure(config: pytest.Config) -> None:
    """Record lines if this module is a plugin of the run (`-p tests.mutation`)."""
    config.pluginmanager.register(LineRecorder(), "line recorder")


def _pytest(folder: Path, *arguments: str, lines: Path | None = None) -> bool:
    """Return True if all tests pass in time."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    command += ["-m", "not slow and not long and not integration", *arguments]
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    if lines is not None:
        environment |= {LINES: str(lines)}
    try:
        ran = subprocess.run(
            command,
            cwd=folder,
            env=environment,
            capture_output=True,
            timeout=None if lines is not None else TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return False
    return ran.returncode == 0


def copy_to(folder: Path) -> Path:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True)
    for name in listed.stdout.split("\n"):
        if (ROOT / name).is_file():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return folder


def covering_tests(folder: Path) -> dict[str, list[str]]:
    """Return the tests that run a line, by `file:line`."""
    tests: dict[str, list[str]] = defaultdict(list)
    for paths in sorted({tuple(paths) for paths in TARGETS.values()}):
        lines = folder / "lines.json"
        if not _pytest(folder, "-p", "tests.mutation", *paths, lines=lines):
            raise SystemExit(f"the tests in {', '.join(paths)} fail without a mutation")
        for line, names in json.loads(lines.read_text()).items():
            tests[line] += names
    return tests


def tests_of(mutation: Mutation, covering: dict[str, list[str]]) -> list[str]:
    """Return the tests that run the changed lines; for a line that runs on import, those that run
    any line of the file."""
    keys = [f"{mutation.file}:{line}" for line in range(mutation.line, mutation.end_line + 1)]
    names = dict.fromkeys(name for key in keys for name in covering.get(key, ()))
    if not names:
        lines = [key for key in covering if key.startswith(f"{mutation.file}:")]
        names = dict.fromkeys(name for key in lines for name in covering[key])
    return list(names)


def survives(mutation: Mutation, *, tests: list[str], folder: Path) -> bool:
    """Return whether the tests pass with the mutation in this copy of the project."""
    if not tests:
        return True
    path = folder / mutation.file
    text = path.read_text(encoding="utf-8")
    names = folder / "tests.txt"
    names.write_text("\n".join(tests))
    path.write_text(mutation.apply(text), encoding="utf-8")
    try:
        return _pytest(folder, f"@{names}")
    finally:
        path.write_text(text, encoding="utf-8")


def target_of(file: str) -> str:
    return next(target for target in TARGETS if file.startswith(target))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args()
    points: list[Mutation] = []
    for target in TARGETS:
        path = ROOT / target
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            points += mutations_of(file.relative_to(ROOT).as_posix())
    chosen = random.Random(options.seed).sample(points, options.number)
    with tempfile.TemporaryDirectory(prefix="mutation-") as root:
        folders: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.processes):
            folders.put(copy_to(Path(root) / str(number)))
        covering = covering_tests(Path(root) / "0")

        def check(mutation: Mutation) -> bool:
            folder = folders.get()
            try:
                names = tests_of(mutation, covering)
                alive = survives(mutation, tests=names, folder=folder)
            finally:
                folders.put(folder)
            if alive:
                position = f"{mutation.file}:{mutation.line}"
                print(f"survived: {position}: {mutation.source} ({len(names)} tests)", flush=True)
            return alive

        with ThreadPoolExecutor(options.processes) as pool:
            alive = list(pool.map(check, chosen))
    totals = Counter(target_of(mutation.file) for mutation in chosen)
    survivors = Counter(
        target_of(mutation.file)
        for mutation, is_alive in zip(chosen, alive, strict=True)
        if is_alive
    )
    for target in TARGETS:
        print(f"{target:36} {totals[target] - survivors[target]:4} of {totals[target]:4} killed")
    killed = options.number - sum(alive)
    print(json.dumps({"mutations": options.number, "points": len(points), "killed": killed}))


if __name__ == "__main__":
    main()
