"""The pretrained model is served alongside the champion, over HTTP and on the HTML page."""

from collections.abc import Iterator

import pytest
import requests

from serving.deploy import rollout
from serving.deploy.application import AdditionalVersions
from serving.engines.classify import Prediction
from tailorbird.registry.champion import ChosenBy
from tests.integration.serving.classification.service import (
    CONFIG,
    TEXTS,
    Service,
)


@pytest.fixture(scope="module")
def compare_url(service: Service) -> Iterator[str]:
    """Yield the URL of a service whose champion is the first version and whose pretrained model the
    swapped one."""
    verdict = ChosenBy(outcome="FINE_TUNE", sentence="FINE_TUNE: <b>+7 points</b>")
    additional = AdditionalVersions(baseline=service.swapped)
    yield rollout.deploy(
        CONFIG,
        task_uri=service.task_uri,
        version=service.first,
        additional=additional,
        verdict=verdict,
    )
    service.deploy(service.first)


def test_requests_select_the_champion_or_the_pretrained_model(
    service: Service, compare_url: str, predictions: dict[str, list[Prediction]]
) -> None:
    models = requests.get(f"{compare_url}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["digest"], model["verdict"]) for model in models] == [
        ("champion", service.first.digest, "FINE_TUNE: <b>+7 points</b>"),
        ("baseline", service.swapped.digest, None),
    ]
    wanted = {"champion": predictions["first"], "baseline": predictions["second"]}
    body = {"input": TEXTS, "scores": True}
    for name, version in (("champion", service.first), ("baseline", service.swapped)):
        answer = service.ask(body | {"model": name})
        assert answer["version"] == version.version
        assert [result["label"] for result in answer["results"]] == [
            prediction.label for prediction in wanted[name]
        ]
        assert service.ask(body | {"model": version.version})["version"] == version.version
