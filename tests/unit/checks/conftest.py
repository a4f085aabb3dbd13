"""Fixtures with a finished run in a local folder."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tailorbird.evaluation.statistics import means
from tailorbird.evaluation.verdict import power
from tests.unit.checks.finished_run import concluded
from tests.unit.evaluation.simulated import Simulation


@pytest.fixture(scope="module", autouse=True)
def few_draws() -> Iterator[None]:
    """A tenth of the random draws: each of these tests computes a verdict two or more times."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(means, "NUM_FLIPS", 1_000)
        patched.setattr(power, "NUM_TESTS", 200)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("registry") / "task"
    concluded(folder, Simulation(num_rows=600))
    return folder


@pytest.fixture
def task_folder(finished: Path, tmp_path: Path) -> Iterator[Path]:
    """Yield the task's folder, which the test may damage like the ledger next to it; restore both
    afterwards."""
    kept = tmp_path / "kept"
    shutil.copytree(finished.parent, kept)
    yield finished
    shutil.rmtree(finished.parent)
    shutil.copytree(kept, finished.parent)
