"""Fixtures: a finished run under a local folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.checks.finished_run import concluded
from tests.unit.evaluation.simulated import Simulation


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    concluded(folder, Simulation(num_rows=600))
    return folder


@pytest.fixture
def task_folder(whole: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy to damage, at the place that its evidence names."""
    kept = tmp_path / "kept"
    shutil.copytree(whole, kept)
    yield whole
    shutil.rmtree(whole)
    shutil.copytree(kept, whole)
