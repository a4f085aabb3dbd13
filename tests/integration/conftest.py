"""One embedded stack for all integration tests: a real S3 server, a real Ray, and the environment that names them."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from cluster.connection import connect
from cluster.local import stack as stacks
from tailorbird.pipeline.run import run_pipeline
from tests.integration.small import SmallRun, small_recipe, write_data
from tests.progress import ProgressRecorder

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[stacks.StackState]:
    """A running stack with two CPUs, whose environment is this process's while the session lasts."""
    folder = tmp_path_factory.mktemp("stack")
    before = dict(os.environ)
    state = stacks.up(folder, num_cpus=2)
    try:
        os.environ.update(state.environment())
        os.environ["TAILORBIRD_CACHE"] = str(tmp_path_factory.mktemp("cache"))
        reset_auth_token_state()  # Ray, which a unit test may have imported already, reads its token's place once
        yield state
    finally:
        stacks.down(folder)
        os.environ.clear()
        os.environ.update(before)


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
    """The small recipe, run to its end once."""
    recipe = small_recipe(tmp_path_factory.mktemp("small"), name="small", data=small_data)
    recorder = ProgressRecorder()
    with connect():
        return SmallRun(recipe, run_pipeline(recipe, progress=recorder), recorder)
