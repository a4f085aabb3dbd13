"""One embedded stack for all integration tests: a real S3 server, a real Ray, and the environment that names them."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import stack as stacks

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
