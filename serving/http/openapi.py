"""What a replica answers, told to programs as OpenAPI 3.1: from its routes and the types that cross the wire."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.http.asgi import ID, JSON, Route
from serving.http.chat_schemas import (
    IGNORED,
    NEUTRAL,
    TEXT_NEUTRAL,
    ChatAnswer,
    ChatChunk,
    ChatRequest,
    CompletionAnswer,
    CompletionChunk,
    CompletionRequest,
)
from serving.http.schemas import (
    BatchJob,
    BatchRequest,
    ClassifyAnswer,
    ClassifyRequest,
    CompareAnswer,
    ErrorBody,
    FeedbackRequest,
    Health,
    Models,
    Readiness,
)
from tailorbird.config.serving import ServingConfig

NO_EFFECT = "x-no-effect"
"""Marks fields that OpenAI's clients may send, and that change nothing."""
REF = "#/components/schemas/{model}"
PER_TEXT_FIELDS = {"ClassifyRequest": ("input", "attributes")}
"""Fields with one entry a text, which `serving.max_texts` bounds."""
REFUSALS = {
    400: "The body is not JSON, or a field of it cannot be taken; the message names it.",
    401: "No key that is valid here.",
    403: "The batch's prefix is not open; or only this machine may ask, by the name 127.0.0.1 or localhost, and no "
    "other page from a browser.",
    404: "There is no such model or batch, or the recipe opens no request log for feedback, or no prefix for batches.",
    408: "The body did not come whole within 20 s.",
    409: "The batch is another than was asked for before, or is over.",
    413: "The body is over {max_body_bytes} bytes.",
    422: "A field is missing, unknown or out of bounds; the message names it.",
    429: "More requests than are taken, of the key or of all; `retry-after` says when to ask again.",
    500: "A fault of the service; the replica's log has it under the request's id.",
    503: "The model is still being loaded, or no replica is there.",
}


@dataclass(frozen=True)
class Operation:
    """What is told of a route."""

    summary: str
    answer: type[BaseModel] | None
    """Of `status`; None of a page or of this document."""
    request: type[BaseModel] | None = None
    example: Mapping[str, Any] = field(default_factory=dict)
    """A request's body."""
    status: int = 200
    events: type[BaseModel] | None = None
    """Of which a stream consists, where one can be asked for."""
    refusals: tuple[int, ...] = ()
    """Statuses of its own errors, beside those of its method, of the door, and of a service that is busy or fails."""
    also: Mapping[int, type[BaseModel]] = field(default_factory=dict)
    """Answers of other statuses that are no errors."""


_TEXT = {"input": "Fracture of femur"}
_TALK = {"messages": [{"role": "user", "content": "What is a fracture?"}], "max_tokens": 32}
OPERATIONS: Mapping[str, Operation] = {
    "/v1/classify": Operation(
        "The most probable class of each text", ClassifyAnswer, ClassifyRequest, _TEXT, refusals=(404, 422)
    ),
    "/v1/compare": Operation(
        "The same texts answered by the pretrained model and by the champion",
        CompareAnswer,
        ClassifyRequest,
        _TEXT,
        refusals=(404, 422),
    ),
    "/v1/chat/completions": Operation(
        "The next turn of a conversation, whole or streamed",
        ChatAnswer,
        ChatRequest,
        _TALK,
        events=ChatChunk,
        refusals=(404,),
    ),
    "/v1/completions": Operation(
        "A text continued as it stands, whole or streamed",
        CompletionAnswer,
        CompletionRequest,
        {"prompt": "A fracture is", "max_tokens": 32},
        events=CompletionChunk,
        refusals=(404,),
    ),
    "/v1/models": Operation("The versions that serve", Models),
    "/v1/feedback": Operation(
        "What was right, of an answer given earlier",
        FeedbackRequest,
        FeedbackRequest,
        {"request_id": "2c9a7f40", "label": "injury and poisoning"},
        status=202,
        refusals=(404, 422),
    ),
    "/v1/batches": Operation(
        "A Parquet data set through a version, off the request path",
        BatchJob,
        BatchRequest,
        {"input": "s3://lake/letters", "output": "s3://lake/letters-scored"},
        status=202,
        refusals=(403, 404, 409, 422),
    ),
    "/v1/batches/{id}": Operation("How far a batch is", BatchJob, refusals=(404,)),
    "/v1/batches/{id}/cancel": Operation("Ends a batch that is not over", BatchJob, refusals=(404, 409)),
    "/healthz": Operation("Whether the process lives", Health),
    "/readyz": Operation("Whether a version is loaded, and which", Readiness, also={503: Readiness}),
    "/openapi.json": Operation("This document", None),
    "/docs": Operation("This document as a page", None),
    "/": Operation("A page for people to ask on", None),
}


def openapi(routes: Mapping[str, Route], *, config: ServingConfig) -> dict[str, Any]:
    """The document of these routes; every one has to be among `OPERATIONS`."""
    missing = sorted(set(routes) - set(OPERATIONS))
    assert not missing, f"serving.openapi.OPERATIONS does not tell of {missing}"
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "Tailorbird",
            "version": "1",
            "description": "A model that won its verdict, served. Every answer carries the header `x-request-id`, the "
            "caller's own where the request had one.",
        },
        "servers": [{"url": ".", "description": "Where this document is"}],
        "paths": {
            path: {route.method.lower(): _operation(path, route, config=config)} for path, route in routes.items()
        },
        "components": {"schemas": _schemas(routes, config=config)},
    }
    if config.api_keys is not None:
        told = "A key made by `tailorbird key`."
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer", "description": told}}
    return document


def _operation(path: str, route: Route, *, config: ServingConfig) -> dict[str, Any]:
    operation = OPERATIONS[path]
    found: dict[str, Any] = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", path).strip("_") or "page",
        "summary": operation.summary,
        "responses": {
            **_responses(operation, content_type=route.content_type),
            **{
                str(status): _error_response(status, config=config)
                for status in _error_statuses(operation, route, config)
            },
        },
    }
    if ID in path:
        told = "As the batch's status has it."
        found["parameters"] = [
            {"name": "id", "in": "path", "required": True, "description": told, "schema": {"type": "string"}}
        ]
    if operation.request is not None:
        content = {JSON: {"schema": _ref(operation.request), "example": dict(operation.example)}}
        told = f"At most {config.max_body_bytes} bytes."
        found["requestBody"] = {"required": True, "description": told, "content": content}
    if config.api_keys is not None and not route.open:
        found["security"] = [{"key": []}]
    return found


def _responses(operation: Operation, *, content_type: str) -> dict[str, Any]:
    schema = {"type": "object"} if content_type == JSON else {"type": "string"}
    content: dict[str, Any] = {content_type: {"schema": _ref(operation.answer) if operation.answer else schema}}
    if operation.events is not None:
        data = {"type": "string", "description": f"a {operation.events.__name__} as JSON; [DONE] at the end"}
        told = "where `stream` is true: server-sent events, each like this"
        event = {"type": "object", "description": told, "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    answers = {str(operation.status): {"description": operation.summary, "content": content}}
    for status, answer in operation.also.items():
        answers[str(status)] = {"description": "Not yet", "content": {JSON: {"schema": _ref(answer)}}}
    return answers


def _error_statuses(operation: Operation, route: Route, config: ServingConfig) -> list[int]:
    found = {*operation.refusals, 429, 500, 503}
    if route.method == "POST":
        found |= {400, 408, 413}
    if config.api_keys is not None and not route.open:
        found.add(401)
    elif not config.guarded and not route.open:
        found.add(403)
    return sorted(found)


def _error_response(status: int, *, config: ServingConfig) -> dict[str, Any]:
    content: dict[str, Any] = {JSON: {"schema": _ref(ErrorBody)}}
    if status in (429, 503):
        content["text/plain"] = {"schema": {"type": "string", "description": "Where Ray Serve itself refuses it."}}
    if status == 408:
        content["text/html"] = {"schema": {"type": "string", "description": "Where the proxy itself refuses it."}}
    found = {"description": REFUSALS[status].format(max_body_bytes=config.max_body_bytes), "content": content}
    if status == 429:
        found["headers"] = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return found


def _schemas(routes: Mapping[str, Route], *, config: ServingConfig) -> dict[str, Any]:
    """Of every type on the wire, with the bounds that the recipe sets."""
    models: dict[type[BaseModel], None] = {ErrorBody: None}
    for path in routes:
        operation = OPERATIONS[path]
        told = (operation.request, operation.answer, operation.events, *operation.also.values())
        models |= dict.fromkeys(model for model in told if model is not None)
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    schemas: dict[str, Any] = found["$defs"]
    for name, fields in PER_TEXT_FIELDS.items():
        for place in fields if name in schemas else ():
            for kind in schemas[name]["properties"][place]["anyOf"]:
                if kind.get("type") == "array":
                    kind |= {"minItems": 1, "maxItems": config.max_texts}
    for name, neutral in (("ChatRequest", NEUTRAL), ("CompletionRequest", TEXT_NEUTRAL)):
        if name in schemas:
            _forbid_extra_fields(schemas[name], neutral=neutral)
    if "ChatMessage" in schemas:
        schemas["ChatMessage"]["properties"]["name"] = {"description": "Changes no answer.", NO_EFFECT: True}
        # As it stands in an answer, which is sent back as a turn.
        schemas["ChatMessage"]["properties"]["refusal"] = {"type": "null", NO_EFFECT: True, "description": "None."}
        schemas["ChatMessage"]["additionalProperties"] = False
    return schemas


def _forbid_extra_fields(schema: dict[str, Any], *, neutral: Mapping[str, Any]) -> None:
    """Of OpenAI's fields, those that are taken but change nothing; further ones are refused."""
    for name in IGNORED:
        schema["properties"][name] = {"description": "Changes no answer.", NO_EFFECT: True}
    for name, value in neutral.items():
        told = "Taken with the value that asks for nothing, and with no other."
        schema["properties"][name] = {"enum": [value, None], "description": told, NO_EFFECT: True}
    schema["additionalProperties"] = False


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}
