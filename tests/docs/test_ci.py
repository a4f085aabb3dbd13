"""The script of continuous integration."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("variables", "continues"), [({}, False), ({"TAILORBIRD_WITHOUT_BROWSER": "1"}, True)]
)
def test_without_chromium_the_script_fails_unless_a_variable_is_set(
    variables: dict[str, str], continues: bool, tmp_path: Path
) -> None:
    """The path has no command, so neither Chromium nor `apt-get`, and not `make`, the next step."""
    environment = {"PATH": str(tmp_path), **variables}
    script = ["/bin/bash", str(ROOT / ".ci" / "run")]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("Chromium is not installed, which the tests of pages need")
    assert ("make: command not found" in done.stderr) is continues
    assert done.returncode == (127 if continues else 1)
