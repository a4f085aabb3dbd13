"""The notebook is stored without results, and its commands exist.

Its comparison works after each outcome. `tests/integration/pipeline/test_run.py` executes all code
cells.
"""

import ast
import json
import re
from pathlib import Path

import pytest

import tailorbird
from tailorbird.evaluation.report.evidence import Evidence
from tailorbird.interface.runs import Comparison, Run
from tests.docs.test_pages import ROOT, commands, unknown_part
from tests.notebook import PARAMETERS, execute, read_cells
from tests.unit.evaluation.report.test_html import SIMULATIONS
from tests.unit.evaluation.report.test_version_comparison import stored

NOTEBOOK = ROOT / "docs" / "notebook.ipynb"
GUIDE = ROOT / "docs" / "guides" / "python.md"


def test_the_notebook_is_stored_in_the_current_format_without_results() -> None:
    content = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert [(cell["outputs"], cell["execution_count"]) for cell in code] == [([], None)] * len(code)
    cells = read_cells(NOTEBOOK)
    assert len({cell.id for cell in cells}) == len(cells) > 8
    assert sum(PARAMETERS in cell.tags for cell in cells) == 1
    for cell in cells:
        if cell.kind == "code":
            ast.parse(cell.source)


def test_the_commands_in_the_notebook_exist() -> None:
    texts = [cell.source for cell in read_cells(NOTEBOOK) if cell.kind == "markdown"]
    found_commands = [parts for text in texts for parts in commands(text)]
    assert len(found_commands) == 4
    assert {
        " ".join(parts): part for parts in found_commands if (part := unknown_part(parts))
    } == {}


@pytest.mark.parametrize("outcome", SIMULATIONS)
def test_the_comparison_in_the_notebook_and_the_guide_works_after_each_outcome(
    tmp_path: Path, outcome: str
) -> None:
    stored(tmp_path, SIMULATIONS[outcome])
    (evidence,) = tmp_path.glob("runs/*/evidence.json")
    result = Run(Evidence.model_validate_json(evidence.read_bytes()))
    (cell,) = (cell.source for cell in read_cells(NOTEBOOK) if cell.id == "compare-code")
    (block,) = re.findall(
        r"```python\n(comparison = .*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL
    )
    for source in (cell, block):
        namespace = {"tailorbird": tailorbird, "result": result}
        exec(source, namespace)
        comparison = namespace["comparison"]
        assert isinstance(comparison, Comparison)
        assert comparison.gain == pytest.approx(
            result.verdict.relation("candidate", "incumbent").gain
        )


def test_cells_share_a_namespace_and_have_the_value_of_their_last_line(tmp_path: Path) -> None:
    sources = {
        "a": ("x = 1\ny = 2", [PARAMETERS]),
        "b": ("z = x + y\nz * 10", []),
        "c": ("z = 0", []),
    }
    cells = [
        {"id": name, "cell_type": "code", "source": [source], "metadata": {"tags": tags}}
        for name, (source, tags) in sources.items()
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert execute(tmp_path / "n.ipynb", parameters={"x": 5}) == {"a": None, "b": 70, "c": None}
    with pytest.raises(KeyError, match="no parameters"):
        execute(tmp_path / "n.ipynb", parameters={"w": 5})
