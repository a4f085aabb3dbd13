"""The service that the tests of this package share."""

from collections.abc import Iterator

import pytest

from cluster.local import stack
from serving.deploy import rollout
from tests.integration.serving.classification.service import (
    Service,
)


@pytest.fixture(scope="package")
def service(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert stack.serve_port
    service = Service("s3://models/serving-test", tmp_path_factory.mktemp("versions"))
    service.deploy(service.first)
    yield service
    rollout.undeploy("serving-test")
