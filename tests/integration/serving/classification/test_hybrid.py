"""A hybrid answers each row with the model that its routing rule selects, next to the pretrained
model."""

from pathlib import Path

import pytest
import requests

from serving.deploy import rollout
from serving.deploy.application import AdditionalVersions
from serving.engines.classify import predict_texts
from tailorbird.models import loading
from tailorbird.registry.champion import ChosenBy
from tailorbird.registry.hybrid_routing import Routing
from tests.integration.serving.classification.service import CONFIG, TEXTS, Service
from tests.loaded import load_model


def test_rows_are_answered_by_the_part_of_their_group_and_requests_select_the_pretrained_model(
    service: Service, tmp_path: Path
) -> None:
    hybrid = service.register_hybrid(
        tmp_path, routing=Routing(by="group", column="sex", values=("f", "x"))
    )
    expected = {}
    for part, version in (("first", service.first), ("second", service.swapped)):
        loaded = load_model(version.uri, loading.LoadedClassifier)
        expected[part] = predict_texts(loaded, TEXTS, batch_size=4)
    verdict = ChosenBy(outcome="HYBRID", sentence="HYBRID: <b>+7 points</b>")
    rollout.deploy(
        CONFIG,
        task_uri=service.task_uri,
        version=hybrid,
        additional=AdditionalVersions(baseline=service.swapped),
        verdict=verdict,
    )
    try:
        models = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"]
        assert [(model["id"], model["version"], model["verdict"]) for model in models] == [
            ("champion", hybrid.version, verdict.sentence),
            ("baseline", service.swapped.version, None),
        ]
        each = [{"sex": "f"}, {"sex": "m"}, {}, {"sex": "x", "age": "9"}, {"age": "f"}]
        parts = ["second", "first", "first", "second", "first"]
        body = {"input": TEXTS}
        results = service.ask(body | {"attributes": each})["results"]
        assert [result["answered_by"] for result in results] == parts
        for index, (part, result) in enumerate(zip(parts, results, strict=True)):
            assert result["label"] == expected[part][index].label
            assert result["score"] == pytest.approx(expected[part][index].score, abs=2e-3)
        whole = service.ask(body | {"attributes": {"sex": "f"}})["results"]
        assert {result["answered_by"] for result in whole} == {"second"}
        assert {result["answered_by"] for result in service.ask(body)["results"]} == {"first"}
        answer = service.ask(body | {"model": "baseline"})
        assert answer["version"] == service.swapped.version
        labels = [prediction.label for prediction in expected["second"]]
        assert [result["label"] for result in answer["results"]] == labels
    finally:
        service.deploy(service.first)
