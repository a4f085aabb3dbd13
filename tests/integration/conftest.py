"""One embedded stack for all integration tests: a real S3 server, a real Ray, and their environment
variables."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from cluster.connection import connect
from cluster.local import stack as stacks
from tailorbird.pipeline.run import run_pipeline
from tailorbird.pipeline.tasks import ClassificationTask
from tests.integration.small import SmallRun, small_recipe, write_data
from tests.progress import ProgressRecorder
from tests.shared_run import SHARE_THE_SMALL_RUN
from tests.unit.serving.endpoint.versions import KEY, VARIABLE

HERE = Path(__file__).parent
GUARD = "import os, signal, sys; sys.stdin.read(); os.kill(int(sys.argv[1]), signal.SIGTERM)"
"""A program that waits for the end of its input, which comes when the test process dies, and then
stops the stack."""

FOLDERS = ("classification", "pipeline", "training", "serving", "cluster", "storage", "models")
"""The folders in the order in which pytest-xdist starts them: the longest first, so that no process
ends early."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the integration tests and sort them: files that share the small run first, then by
    folder."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
    items.sort(key=_position)


def _position(item: pytest.Item) -> int:
    if HERE not in item.path.parents:
        return len(FOLDERS)
    return (
        -1
        if item.path.as_posix().endswith(SHARE_THE_SMALL_RUN)
        else FOLDERS.index(item.path.parent.name)
    )


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.StackState]:
    """A running stack with two CPUs. This process has its environment variables during the
    session."""
    folder = tmp_path_factory.mktemp("stack")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            ClassificationTask, "num_cost_rows", 32
        )  # a cost measurement answers each row twelve times
        patched.setenv(VARIABLE, KEY)  # replicas inherit the environment in which Ray starts
        patched.setenv("TAILORBIRD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patched.setenv(
            "RAY_worker_niceness", "0"
        )  # with Ray's 15, workers starve if other processes use the cores
        state = stacks.up(folder, num_cpus=2)
        guard = subprocess.Popen(
            [sys.executable, "-S", "-c", GUARD, str(state.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        try:
            for name, value in state.environment().items():
                patched.setenv(name, value)
            # Ray reads the path of its token once, and a unit test may have imported it
            reset_auth_token_state()
            yield state
        finally:
            guard.kill()
            guard.wait()
            stacks.down(folder)


@pytest.fixture(scope="module")
def connected(stack: stacks.StackState) -> Iterator[None]:
    """Connect once per module, so that its tests share the task processes of Ray, which have
    imported torch."""
    assert stack.ray_address
    with connect():
        yield


@pytest.fixture
def bucket(stack: stacks.StackState) -> str:
    """URI of a prefix on S3 that no other test uses."""
    assert stack.s3_endpoint
    return f"s3://lake/test-{uuid.uuid4().hex}"


@pytest.fixture(scope="session")
def small_data(stack: stacks.StackState) -> str:
    """URI of the small recipe's rows, written once."""
    assert stack.s3_endpoint
    prefix = "s3://lake/small"
    write_data(prefix)
    return prefix


@pytest.fixture(scope="session")
def small_run(small_data: str, tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A finished run of the small recipe."""
    recipe = small_recipe(tmp_path_factory.mktemp("small"), name="small", data=small_data)
    recorder = ProgressRecorder()
    with connect():
        return SmallRun(recipe, run_pipeline(recipe, progress=recorder), recorder)
