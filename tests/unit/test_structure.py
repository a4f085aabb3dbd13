"""Limits on the structure of the code: names, types and imports."""

import ast
import re
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("cluster", "training", "tuning", "serving", "tailorbird")
OURS = [
    path
    for package in (*PACKAGES, "tests", "benchmarks")
    for path in sorted((ROOT / package).rglob("*.py"))
]
MAX_UNTYPED = 80
MAX_TASK_CONDITIONS = 12
TASK_MODULES = {
    "tailorbird/config/task_rules.py",
    "tailorbird/data/rows.py",
    "tailorbird/data/task_data.py",
    "tailorbird/interface/predicted_tasks.py",
    "tailorbird/monitoring/monitored_tasks.py",
    "tailorbird/pipeline/tasks.py",
    "serving/served_tasks.py",
    "training/chat_task.py",
    "training/classification_task.py",
}
VAGUE = {"told", "asked", "found", "said", "place", "home"}
"""Identifiers without meaning; use a term of the field instead."""
VENDOR_FILES = {
    "ray": "cluster/ray_private.py",
    "deepspeed": "training/engine/deepspeed_private.py",
    "transformers": "tailorbird/models/attention/transformers_private.py",
    "vllm": "serving/engines/vllm_server.py",
}


def identifiers(source: str) -> set[str]:
    """Return the names that a source file defines, binds or passes by keyword."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Name(id=name)
                | ast.arg(arg=name)
                | ast.ClassDef(name=name)
                | ast.FunctionDef(name=name)
            ):
                names.add(name)
            case (
                ast.AsyncFunctionDef(name=name)
                | ast.keyword(arg=str(name))
                | ast.alias(asname=str(name))
            ):
                names.add(name)
    return names


def private_imports(source: str) -> set[str]:
    """Return the vendors whose private modules (with a leading underscore) a source file
    imports."""
    modules: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules += [f"{node.module}.{alias.name}" for alias in node.names]
    return {module.partition(".")[0] for module in modules if "._" in module} & VENDOR_FILES.keys()


def num_task_conditions(source: str) -> int:
    """Return how often a source file compares a task with its name, or asks whether rows are
    conversations."""

    def is_condition(node: ast.AST) -> bool:
        match node:
            case ast.Compare(
                left=ast.Name(id=name) | ast.Attribute(attr=name), comparators=[ast.Constant(value)]
            ):
                return (name, value) in {
                    ("task", "chat"),
                    ("task", "classification"),
                    ("conversations", None),
                }
        return (
            isinstance(node, ast.Name) and node.id == "is_chat" and isinstance(node.ctx, ast.Load)
        )

    return sum(map(is_condition, ast.walk(ast.parse(source))))


def test_no_identifier_is_vague() -> None:
    vague = {path: identifiers(path.read_text(encoding="utf-8")) & VAGUE for path in OURS}
    assert {path: names for path, names in vague.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "told = 1",
        "def found(): ...",
        "lambda place: 0",
        "f(said=1)",
        "import x as home",
        "class asked: ...",
    ],
)
def test_a_vague_identifier_is_reported(source: str) -> None:
    assert len(identifiers(source) & VAGUE) == 1


def test_few_values_are_untyped_dictionaries() -> None:
    sources = [
        path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    ]
    assert len(sources) > 200
    assert sum(len(re.findall(r"dict\[str, Any\]", source)) for source in sources) <= MAX_UNTYPED


def test_few_conditions_on_the_task_are_outside_the_modules_of_tasks() -> None:
    files = {
        path.relative_to(ROOT).as_posix(): path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }
    assert files.keys() >= TASK_MODULES
    others = [
        path.read_text(encoding="utf-8") for name, path in files.items() if name not in TASK_MODULES
    ]
    assert sum(map(num_task_conditions, others)) <= MAX_TASK_CONDITIONS


@pytest.mark.parametrize(
    ("source", "num"),
    [
        ('if recipe.task == "chat": ...', 1),
        ('x = 1 if task != "classification" else 2', 1),
        ("assert rows.conversations is not None", 1),
        ("is_chat = f()\ny = 1 if is_chat else 2", 1),
        ('TASKS[recipe.task].name == "chat"', 0),
        ("if rows.turns is None: ...", 0),
    ],
)
def test_conditions_on_the_task_are_counted(source: str, num: int) -> None:
    assert num_task_conditions(source) == num


def test_private_modules_of_a_vendor_are_imported_by_one_file() -> None:
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    users = {
        path.relative_to(ROOT).as_posix(): private_imports(path.read_text(encoding="utf-8"))
        for path in files
    }
    assert {
        file: vendors
        for file, vendors in users.items()
        if vendors - {v for v, f in VENDOR_FILES.items() if f == file}
    } == {}
    assert all((ROOT / file).is_file() for file in VENDOR_FILES.values())


def test_there_are_no_import_cycles() -> None:
    graph = grimp.build_graph(*PACKAGES)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    TopologicalSorter(imports).prepare()  # raises CycleError, which names the cycle
