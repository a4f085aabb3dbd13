"""A deployed version, with code from S3, gives the same answers over HTTP as in memory."""

from pathlib import Path
from typing import Any

import pytest
import requests

from serving.deploy import rollout
from serving.engines.classify import predict_texts
from tailorbird.config.serving import ServingConfig
from tailorbird.models import loading
from tests.fuzz import fuzz
from tests.integration.serving.classification.service import (
    CLASSES,
    CONFIG,
    TEXTS,
    Service,
)
from tests.loaded import load_model


def test_answers_equal_those_of_the_version_in_memory(service: Service) -> None:
    loaded = load_model(service.first.uri, loading.LoadedClassifier)
    expected = predict_texts(loaded, TEXTS, batch_size=4)
    answer = service.ask({"input": TEXTS, "scores": True})
    assert (answer["model"], answer["version"]) == ("serving-test", service.first.version)
    assert [result["label"] for result in answer["results"]] == [
        prediction.label for prediction in expected
    ]
    assert answer["results"][0]["label"] == "a broken bone"
    for result, prediction in zip(answer["results"], expected, strict=True):
        assert result["score"] == pytest.approx(prediction.score, abs=2e-3)
        scores = dict(zip(CLASSES, prediction.scores.tolist(), strict=True))
        assert result["scores"] == pytest.approx(scores, abs=2e-3)


def test_models_and_probes_report_the_served_version(service: Service) -> None:
    models = requests.get(f"{service.url}/v1/models", timeout=60).json()["data"]
    assert [(model["id"], model["digest"]) for model in models] == [
        ("champion", service.first.digest)
    ]
    for name in ("champion", models[0]["version"], f"{models[0]['name']}@{models[0]['version']}"):
        assert requests.get(f"{service.url}/v1/models/{name}", timeout=60).json() == models[0]
    unknown = requests.get(f"{service.url}/v1/models/other", timeout=60)
    assert (unknown.status_code, unknown.json()["error"]["type"]) == (404, "unknown_model")
    assert requests.get(f"{service.url}/healthz", timeout=60).json() == {"status": "up"}
    ready = requests.get(f"{service.url}/readyz", timeout=60)
    assert (ready.status_code, ready.json()["digest"]) == (200, service.first.digest)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "type"),
    [
        ("POST", "/v1/classify", b"{", 400, "invalid_json"),
        ("POST", "/v1/classify", b'{"input": []}', 422, "invalid_request"),
        ("POST", "/v1/classify", b'{"input": "a", "model": "other"}', 404, "unknown_model"),
        ("POST", "/v1/classify", b"a" * 10_000_000, 413, "body_too_large"),
        # without a declared length
        ("POST", "/v1/classify", [b'{"input": "', b"a" * 1_100_000], 413, "body_too_large"),
        ("GET", "/v1/nothing", None, 404, "unknown_route"),
    ],
    ids=range(6),
)
def test_bad_input_is_a_json_error_and_does_not_affect_later_requests(
    service: Service,
    method: str,
    path: str,
    body: bytes | list[bytes] | None,
    status: int,
    type: str,
) -> None:
    data = iter(body) if isinstance(body, list) else body
    answer = requests.request(method, service.url + path, data=data, timeout=60)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, type)
    assert service.ask({"input": TEXTS[0]})["results"][0]["label"] == "a broken bone"


@pytest.mark.long
def test_a_fuzzer_gets_only_documented_responses(service: Service, tmp_path: Path) -> None:
    lake = "s3://lake/fuzzed"
    fields: dict[str, Any] = {"request_log": f"{lake}/requests"}
    config = ServingConfig.model_validate(CONFIG.model_dump() | fields)
    try:
        fuzz(
            rollout.deploy(config, task_uri="s3://models/serving-fuzzed", version=service.first),
            folder=tmp_path,
        )
    finally:
        rollout.undeploy("serving-fuzzed")
