"""The service that the tests of this package share."""

from collections.abc import Iterator

import pytest

from cluster.local import stack
from serving.deploy import rollout
from serving.engines.classify import Prediction, predict_texts
from tailorbird.models import loading
from tests.integration.serving.classification.service import (
    TEXTS,
    Service,
)
from tests.loaded import load_model


@pytest.fixture(scope="package")
def service(stack: stack.StackState, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    assert stack.serve_port
    service = Service("s3://models/serving-test", tmp_path_factory.mktemp("versions"))
    service.deploy(service.first)
    yield service
    rollout.undeploy("serving-test")


@pytest.fixture(scope="package")
def predictions(service: Service) -> dict[str, list[Prediction]]:
    """Return the predictions of each part of the hybrids for `TEXTS`."""
    parts = {"first": service.first, "second": service.swapped}
    return {
        part: predict_texts(load_model(version.uri, loading.LoadedClassifier), TEXTS, batch_size=4)
        for part, version in parts.items()
    }
