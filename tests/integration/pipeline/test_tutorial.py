"""The commands of the tutorial work in the order in which they are printed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.local.stack import StackState
from serving.deploy.application import application_name
from serving.deploy.rollout import undeploy
from tests.docs.test_pages import BLOCK, ROOT

RUN = "tuning.num_trials=2 training.num_seeds=1"
SHORTER = "tuning.num_trials=1 training.num_seeds=1 training.epochs=1 data.max_train_rows=640"
HAS_ITS_STACK = (
    "make setup",
    "tailorbird stack down",
)  # blocks that set up and stop what the tests share


@pytest.fixture
def scripts(stack: StackState) -> Iterator[list[str]]:
    """The blocks of bash code in the tutorial, with a shorter run; the service that they deploy is
    removed."""
    assert stack.s3_endpoint
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    blocks = [block for language, block in BLOCK.findall(text) if language == "bash"]
    assert sum(RUN in block for block in blocks) == 1
    yield [block.replace(RUN, SHORTER) for block in blocks if not block.startswith(HAS_ITS_STACK)]
    undeploy(application_name("s3://models/my-task"))


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_the_tutorial_ends_with_an_answer_of_the_served_model(
    scripts: list[str], stack: StackState, tmp_path: Path
) -> None:
    (tmp_path / "recipes").mkdir()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        "PATH": path,
        "TAILORBIRD_HOME": str(Path(stack.token_path).parent),
    }
    outputs = []
    for script in scripts:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{script}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        outputs.append(done.stdout)
    answer = json.loads(outputs[-1])
    assert [set(result) for result in answer["results"]] == [{"label", "score"}] * 2
