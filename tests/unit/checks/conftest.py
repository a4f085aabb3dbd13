"""Fixtures with a finished run in a local folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.checks.finished_run import concluded
from tests.unit.evaluation.simulated import Simulation


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry") / "task"
    concluded(folder, Simulation(num_rows=600))
    return folder


@pytest.fixture
def task_folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield the task's folder, which the test may damage like the ledger next to it; restore both afterwards."""
    kept = tmp_path / "kept"
    shutil.copytree(finished.parent, kept)
    yield finished
    shutil.rmtree(finished.parent)
    shutil.copytree(kept, finished.parent)
