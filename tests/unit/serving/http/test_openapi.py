"""The OpenAPI document describes every route, request and response."""

import json
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from serving.engines.base_chat import PartialAnswer
from serving.http.chat_format import (
    OBJECT,
    STREAM_OBJECT,
    Usage,
    answer_head,
    first_event,
    last_event,
    text_event,
    usage_event,
    whole_response,
)
from serving.replica.chat import Chat
from serving.replica.classifier import Classifier
from tailorbird.config.serving import ServingConfig
from tests.unit.serving.http.application import application, request

CONFIG = ServingConfig()
SERVICES = [Classifier, Chat]


def _document(service: type, config: ServingConfig = CONFIG) -> dict[str, Any]:
    status, _, body = request(application(service, config), "GET", "/openapi.json")
    assert status == 200
    document: dict[str, Any] = json.loads(body)
    return document


def is_valid(document: dict[str, Any], name: str, value: Any) -> bool:
    """Return True if a value is valid for a schema of the document."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    try:
        Draft202012Validator(schema).validate(value)
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("service", SERVICES)
def test_examples_are_valid_and_errors_are_documented(service: type) -> None:
    document = _document(service)
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "requestBody" in operation:
                content = operation["requestBody"]["content"]["application/json"]
                assert is_valid(
                    document, content["schema"]["$ref"].rsplit("/", 1)[-1], content["example"]
                )
            # The body is an empty object, and no version is loaded.
            status, _, body = request(application(service, CONFIG), method.upper(), path)
            if status >= 400 and path != "/readyz":
                assert str(status) in document["x-errors"]
                assert is_valid(document, "ErrorBody", json.loads(body))


def test_api_keys_are_documented_if_the_recipe_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEYS", f"app {'0' * 64}")
    document = _document(Classifier, ServingConfig(api_keys="env://KEYS"))
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    operations = {
        path: operation for path, item in document["paths"].items() for operation in item.values()
    }
    assert {path for path, operation in operations.items() if "security" in operation} == {
        "/v1/classify", "/v1/models", "/v1/models/{id}", "/v1/feedback"
    }  # fmt: skip
    assert operations["/v1/classify"]["description"] == "The key needs the scope `answer`."
    assert "securitySchemes" not in _document(Classifier)["components"]


def test_chat_responses_are_valid_for_the_document() -> None:
    document = _document(Chat)
    head, chunk = (
        answer_head(name, request_id="r", model="m", version="v")
        for name in (OBJECT, STREAM_OBJECT)
    )
    answer = PartialAnswer("a", 1, "stop", confidence=0.5)
    whole = whole_response(head, answer, usage=Usage(1, 2))
    assert is_valid(document, "ChatResponse", json.loads(whole))
    events = [first_event(chunk), text_event(chunk, text="a"), last_event(chunk, answer)]
    for event in [*events, usage_event(chunk, usage=Usage(1, 2))]:
        assert is_valid(document, "ChatChunk", json.loads(event.removeprefix(b"data: ")))
