"""`make setup` chooses the build of torch, and Python stores compiled modules.

The Python of the environment is a script that records its arguments.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PIP = """#!/bin/sh
echo "PYTHONDONTWRITEBYTECODE=$PYTHONDONTWRITEBYTECODE" >> environment.txt
case "$*" in
  */dev/stdin) cat >> installed.txt; cat found.txt >&2; exit $(test -s found.txt && echo 1 || echo 0);;
  *) echo "$*" >> installed.txt;;
esac
"""
NO_BUILD = (
    "ERROR: Ignored the following yanked versions: 1\nERROR: Could not find a version that "
    "satisfies the requirement torch==2+cpu (from versions: 2)\nERROR: No matching distribution "
    "found for torch==2+cpu\n"
)
FULL_DISK = (
    "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
)
NO_NETWORK = "WARNING: Retrying (Retry(total=4)) after connection broken by 'ConnectTimeoutError'\n"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


def setup(
    folder: Path, *, pip_errors: str = "", driver: str = "", sha256: str = ""
) -> tuple[list[str], str]:
    """Run `make setup` in a copy of the checkout; return what it installed for torch, and its
    errors."""
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "pyproject.toml", folder)
    shutil.copytree(ROOT / "locks", folder / "locks")
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(PIP)
    python.chmod(0o755)
    (folder / "found.txt").write_text(pip_errors)
    command = [
        "make",
        "--silent",
        "setup",
        "TORCH_INDEX=",
        f"NVIDIA_DRIVER={driver}",
        f"TORCH_SHA256={sha256}",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    calls = (folder / "installed.txt").read_text().splitlines()
    installed = [call.split()[-1] if call.startswith("-m pip") else call.strip() for call in calls]
    return [each for each in installed if "torch" in each], done.stderr


def test_the_build_for_cpus_is_installed_where_pip_finds_it(tmp_path: Path) -> None:
    (build,), errors = setup(tmp_path)
    assert build.startswith("torch==")
    assert build.endswith("+cpu")
    assert errors == ""


def test_the_build_for_cpus_is_compared_with_a_given_hash(tmp_path: Path) -> None:
    (build,), _ = setup(tmp_path, sha256="0" * 64)
    assert build.endswith(f"+cpu --hash=sha256:{'0' * 64}")


def test_the_build_for_cpus_is_not_installed_on_a_machine_with_an_nvidia_driver(
    tmp_path: Path,
) -> None:
    assert setup(tmp_path, driver="/proc/driver/nvidia/version") == (["locks/torch.txt"], "")


def test_the_locked_build_is_installed_without_an_error_if_there_is_no_build_for_cpus(
    tmp_path: Path,
) -> None:
    installed, errors = setup(tmp_path, pip_errors=NO_BUILD)
    assert installed[1:] == ["locks/torch.txt"]
    assert errors == ""


@pytest.mark.parametrize(
    ("pip_errors", "shown"),
    [(FULL_DISK, FULL_DISK), (NO_NETWORK + NO_BUILD, NO_NETWORK)],
    ids=["disk", "network"],
)
def test_other_errors_of_pip_are_printed(pip_errors: str, shown: str, tmp_path: Path) -> None:
    installed, errors = setup(tmp_path, pip_errors=pip_errors)
    assert installed[1:] == ["locks/torch.txt"]
    assert errors == shown


def test_python_stores_compiled_modules_even_if_the_environment_forbids_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    setup(tmp_path)
    assert set((tmp_path / "environment.txt").read_text().splitlines()) == {
        "PYTHONDONTWRITEBYTECODE="
    }
