"""Run the code cells of a notebook in this process.

A kernel (nbclient, ipykernel) would be a second process that imports torch and Ray again, needs its
own connection to Ray, and adds a dozen packages. The cells need nothing that only a kernel has.
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMETERS = "parameters"  # tag of the cell whose values a caller can replace


@dataclass(frozen=True)
class Cell:
    """A cell of a notebook."""

    id: str
    kind: str
    source: str
    tags: tuple[str, ...] = ()


def read_cells(path: Path) -> list[Cell]:
    """Return the cells of a notebook."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [
        Cell(
            cell["id"],
            cell["cell_type"],
            "".join(cell["source"]),
            tuple(cell["metadata"].get("tags", ())),
        )
        for cell in cells
    ]


def execute(path: Path, *, parameters: Mapping[str, object]) -> dict[str, Any]:
    """Run the code cells in one namespace; return the value of the last line of each cell, by the
    cell's id.

    `parameters` replace values after the cell with the tag `parameters`; unknown names raise
    KeyError. As in a notebook, the value is None if the last line is not an expression.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    values = {}
    for cell in read_cells(path):
        if cell.kind != "code":
            continue
        values[cell.id] = _run(cell, namespace)
        if PARAMETERS in cell.tags:
            if missing := sorted(set(parameters) - set(namespace)):
                raise KeyError(f"the notebook has no parameters {missing}")
            namespace.update(parameters)
    return values


def _run(cell: Cell, namespace: dict[str, Any]) -> Any:
    body, value = ast.parse(cell.source).body, None
    if body and isinstance(body[-1], ast.Expr):
        value = body[-1].value
        body = body[:-1]
    exec(compile(ast.Module(body, type_ignores=[]), cell.id, "exec"), namespace)
    return (
        None if value is None else eval(compile(ast.Expression(value), cell.id, "eval"), namespace)
    )
