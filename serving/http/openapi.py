"""A replica's OpenAPI 3.1 document, from its routes and the types of requests and answers."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.http import chat_schemas, schemas
from serving.http.asgi import ID, JSON, Route
from tailorbird.config.serving import ServingConfig

NO_EFFECT = "x-no-effect"  # marks fields that OpenAI's clients may send and that change nothing
REF = "#/components/schemas/{model}"
PER_TEXT_FIELDS = {"ClassifyRequest": ("input", "attributes")}
"""Fields with one entry a text, which `serving.max_texts` limits."""
REFUSALS = {
    400: "The body is not JSON, or a field of it cannot be taken; the message names it.",
    401: "No valid API key.",
    403: "The batch's prefix is not allowed; or, without API keys, the request is not from this machine by the name "
    "127.0.0.1 or localhost, or is from another site's page.",
    404: "There is no such model or batch, or the recipe has no request log for feedback, or no prefix for batches.",
    408: "The body did not arrive within 20 s.",
    409: "The batch was requested before with other columns, or has ended.",
    413: "The body is over {max_body_bytes} bytes.",
    422: "A field is missing, unknown or out of bounds; the message names it.",
    429: "Too many requests, of this key or in all; retry after `retry-after`.",
    500: "An internal error; the replica's log has it under the request's id.",
    503: "The model is still loading, or there is no replica.",
}


Schema = dict[str, Any]  # A JSON object of the document


@dataclass(frozen=True)
class Operation:
    """The documentation of a route."""

    summary: str
    answer: type[BaseModel] | None  # the answer with `status`; None for a page and for this document
    request: type[BaseModel] | None = None
    example: Mapping[str, object] = field(default_factory=dict)  # body of an example request
    status: int = 200
    events: type[BaseModel] | None = None  # the events of a stream, if one can be requested
    refusals: tuple[int, ...] = ()
    """Statuses of its own errors, in addition to those of its method, of authentication and of the service."""
    also: Mapping[int, type[BaseModel]] = field(default_factory=dict)  # answers with other statuses that are no errors


_TEXT = {"input": "Fracture of femur"}
_CONVERSATION = {"messages": [{"role": "user", "content": "What is a fracture?"}], "max_tokens": 32}
OPERATIONS: Mapping[str, Operation] = {
    "/v1/classify": Operation(
        "The most probable class of each text",
        schemas.ClassifyAnswer,
        schemas.ClassifyRequest,
        _TEXT,
        refusals=(404, 422),
    ),
    "/v1/compare": Operation(
        "The same texts answered by the pretrained model and by the champion",
        schemas.CompareAnswer,
        schemas.ClassifyRequest,
        _TEXT,
        refusals=(404, 422),
    ),
    "/v1/chat/completions": Operation(
        "The next turn of a conversation, whole or streamed",
        chat_schemas.ChatAnswer,
        chat_schemas.ChatRequest,
        _CONVERSATION,
        events=chat_schemas.ChatChunk,
        refusals=(404,),
    ),
    "/v1/completions": Operation(
        "A text continued as it stands, whole or streamed",
        chat_schemas.CompletionAnswer,
        chat_schemas.CompletionRequest,
        {"prompt": "A fracture is", "max_tokens": 32},
        events=chat_schemas.CompletionChunk,
        refusals=(404,),
    ),
    "/v1/models": Operation("The versions that serve", schemas.Models),
    "/v1/feedback": Operation(
        "The correct label of an earlier answer",
        schemas.FeedbackRequest,
        schemas.FeedbackRequest,
        {"request_id": "2c9a7f40", "label": "injury and poisoning"},
        status=202,
        refusals=(404, 422),
    ),
    "/v1/batches": Operation(
        "Score a Parquet data set",
        schemas.BatchJob,
        schemas.BatchRequest,
        {"input": "s3://lake/letters", "output": "s3://lake/letters-scored"},
        status=202,
        refusals=(403, 404, 409, 422),
    ),
    "/v1/batches/{id}": Operation("The state of a batch", schemas.BatchJob, refusals=(404,)),
    "/v1/batches/{id}/cancel": Operation("Cancel a batch", schemas.BatchJob, refusals=(404, 409)),
    "/healthz": Operation("Liveness", schemas.Health),
    "/readyz": Operation(
        "Readiness: whether a version is loaded, and which", schemas.Readiness, also={503: schemas.Readiness}
    ),
    "/openapi.json": Operation("This document", None),
    "/docs": Operation("This document as a page", None),
    "/": Operation("A page to try the model", None),
}


def openapi(routes: Mapping[str, Route], *, config: ServingConfig) -> Schema:
    """Return the document of the routes, each of which must be in `OPERATIONS`."""
    missing = sorted(set(routes) - set(OPERATIONS))
    assert not missing, f"OPERATIONS lacks {missing}"
    document: Schema = {
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
        scheme = {"type": "http", "scheme": "bearer", "description": "A key made by `tailorbird key`."}
        document["components"]["securitySchemes"] = {"key": scheme}
    return document


def _operation(path: str, route: Route, *, config: ServingConfig) -> Schema:
    operation = OPERATIONS[path]
    documented: Schema = {
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
        text = "The batch's `id`."
        documented["parameters"] = [
            {"name": "id", "in": "path", "required": True, "description": text, "schema": {"type": "string"}}
        ]
    if operation.request is not None:
        content = {JSON: {"schema": _ref(operation.request), "example": dict(operation.example)}}
        text = f"At most {config.max_body_bytes} bytes."
        documented["requestBody"] = {"required": True, "description": text, "content": content}
    if config.api_keys is not None and not route.open:
        documented["security"] = [{"key": []}]
    return documented


def _responses(operation: Operation, *, content_type: str) -> Schema:
    schema = {"type": "object"} if content_type == JSON else {"type": "string"}
    content: Schema = {content_type: {"schema": _ref(operation.answer) if operation.answer else schema}}
    if operation.events is not None:
        data = {"type": "string", "description": f"a {operation.events.__name__} as JSON; [DONE] at the end"}
        text = "if `stream` is true: server-sent events, each like this"
        event = {"type": "object", "description": text, "properties": {"data": data}, "required": ["data"]}
        content["text/event-stream"] = {"schema": event}
    responses = {str(operation.status): {"description": operation.summary, "content": content}}
    for status, answer in operation.also.items():
        responses[str(status)] = {"description": "Not yet", "content": {JSON: {"schema": _ref(answer)}}}
    return responses


def _error_statuses(operation: Operation, route: Route, config: ServingConfig) -> list[int]:
    statuses = {*operation.refusals, 429, 500, 503}
    if route.method == "POST":
        statuses |= {400, 408, 413}
    if config.api_keys is not None and not route.open:
        statuses.add(401)
    elif not config.guarded and not route.open:
        statuses.add(403)
    return sorted(statuses)


def _error_response(status: int, *, config: ServingConfig) -> Schema:
    content: Schema = {JSON: {"schema": _ref(schemas.ErrorBody)}}
    if status in (429, 503):
        content["text/plain"] = {"schema": {"type": "string", "description": "If Ray Serve itself refuses it."}}
    if status == 408:
        content["text/html"] = {"schema": {"type": "string", "description": "If the proxy itself refuses it."}}
    response = {"description": REFUSALS[status].format(max_body_bytes=config.max_body_bytes), "content": content}
    if status == 429:
        response["headers"] = {"retry-after": {"schema": {"type": "integer"}, "description": "Seconds."}}
    return response


def _schemas(routes: Mapping[str, Route], *, config: ServingConfig) -> Schema:
    """Return the schemas of all requests and answers, with the limits of the recipe."""
    models: dict[type[BaseModel], None] = {schemas.ErrorBody: None}
    for path in routes:
        operation = OPERATIONS[path]
        types = (operation.request, operation.answer, operation.events, *operation.also.values())
        models |= dict.fromkeys(model for model in types if model is not None)
    _, generated = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    components: Schema = generated["$defs"]
    for name, fields in PER_TEXT_FIELDS.items():
        for field_name in fields if name in components else ():
            for kind in components[name]["properties"][field_name]["anyOf"]:
                if kind.get("type") == "array":
                    kind |= {"minItems": 1, "maxItems": config.max_texts}
    for name, neutral in (("ChatRequest", chat_schemas.NEUTRAL), ("CompletionRequest", chat_schemas.TEXT_NEUTRAL)):
        if name in components:
            _forbid_extra_fields(components[name], neutral=neutral)
    if "ChatMessage" in components:
        components["ChatMessage"]["properties"]["name"] = {"description": "Changes no answer.", NO_EFFECT: True}
        # an answer's message, which has this field, may be sent back as a turn.
        components["ChatMessage"]["properties"]["refusal"] = {"type": "null", NO_EFFECT: True, "description": "None."}
        components["ChatMessage"]["additionalProperties"] = False
    return components


def _forbid_extra_fields(schema: Schema, *, neutral: Mapping[str, object]) -> None:
    """Add OpenAI's fields that are accepted but change nothing, and forbid all others."""
    for name in chat_schemas.IGNORED:
        schema["properties"][name] = {"description": "Changes no answer.", NO_EFFECT: True}
    for name, value in neutral.items():
        text = "Accepted with its neutral value only."
        schema["properties"][name] = {"enum": [value, None], "description": text, NO_EFFECT: True}
    schema["additionalProperties"] = False


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}
