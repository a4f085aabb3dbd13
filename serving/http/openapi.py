"""A replica's OpenAPI 3.1 document, from its routes and the types of requests and responses."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.http import chat_schemas, schemas
from serving.http.asgi import HTML, ID, JSON, Route, path_of
from tailorbird.config.serving import MAX_BODY_BYTES, MAX_TEXT_BYTES, MAX_TEXTS, ServingConfig

REF = "#/components/schemas/{model}"
PER_TEXT_FIELDS = ("input", "attributes")
"""Fields of ClassifyRequest with one entry per text, whose length `MAX_TEXTS` limits."""
ERROR_DESCRIPTIONS = {
    400: "The body is not JSON, a field is not supported, or a header is not UTF-8. The message "
    "names the field or the header.",
    401: "The API key is missing, not valid or expired.",
    403: "The key lacks the scope. Without API keys: the request is not local, or from another "
    "site's page.",
    404: "The model or the page does not exist, or the recipe lacks `request_log` (feedback).",
    408: "The body did not arrive within 20 s.",
    413: f"The body has more than {MAX_BODY_BYTES} bytes, or too many JSON values. The message "
    "gives the limit.",
    422: "A field is missing, unknown or out of range, or a text is too large. The message names "
    "the field.",
    429: "A limit of the key is used up, or this client has too much in progress. Retry after the "
    "time in `retry-after`.",
    500: "Internal error. The replica's log contains it with the request's id.",
    502: "The replica failed before it answered. The proxy repeats only requests for answers, "
    "once. Or the endpoint of a version failed.",
    503: "The model is still loading, no replica is available, or the endpoint of a version "
    "cannot answer at present.",
    504: "The endpoint of a version did not answer in time.",
}
Schema = dict[str, Any]  # a JSON object of the document


@dataclass(frozen=True)
class Operation:
    """The documentation of a route."""

    summary: str
    response: (
        type[BaseModel] | None
    )  # type of the response with `status`; None for the OpenAPI document
    request: type[BaseModel] | None = None
    example: Mapping[str, object] | None = None  # body of an example request
    status: int = 200
    events: type[BaseModel] | None = (
        None  # type of a stream's events; None if the route does not stream
    )


_TEXT = {"input": "Fracture of femur"}
_CONVERSATION = {"messages": [{"role": "user", "content": "What is a fracture?"}], "max_tokens": 32}
OPERATIONS: Mapping[str, Operation] = {
    "/v1/classify": Operation(
        summary="Classify texts",
        response=schemas.ClassifyResponse,
        request=schemas.ClassifyRequest,
        example=_TEXT,
    ),
    "/v1/chat/completions": Operation(
        summary="Answer the last message of a conversation, optionally as a stream",
        response=chat_schemas.ChatResponse,
        request=chat_schemas.ChatRequest,
        example=_CONVERSATION,
        events=chat_schemas.ChatChunk,
    ),
    "/v1/models": Operation("List the served versions", schemas.Models),
    "/v1/models/{id}": Operation("Return a served version", schemas.ServedModel),
    "/v1/feedback": Operation(
        summary="Report the correct label of an earlier request of the same API key",
        response=schemas.FeedbackRequest,
        request=schemas.FeedbackRequest,
        example={"request_id": "2c9a7f40d1e84b5b9f36a0c7e5128d34", "label": "injury and poisoning"},
        status=202,
    ),
    "/healthz": Operation("Liveness probe", schemas.Health),
    "/readyz": Operation("Readiness probe with the loaded versions", schemas.Readiness),
    "/openapi.json": Operation("Return this OpenAPI document", None),
}


def openapi(routes: Mapping[str, Route], *, config: ServingConfig) -> Schema:
    """Return the OpenAPI document of the routes, without pages and their scripts. Each other route
    must be in `OPERATIONS`, by the same key (see `http_app`)."""
    routes = {key: route for key, route in routes.items() if route.content_type == JSON}
    missing = sorted(set(routes) - set(OPERATIONS))
    assert not missing, f"OPERATIONS lacks {missing}"
    components: Schema = {
        "schemas": _schemas(routes),
        "responses": {"Error": _error()},
    }
    if config.api_keys is not None:
        scheme = {
            "type": "http",
            "scheme": "bearer",
            "description": "An API key made by `tailorbird key`.",
        }
        components["securitySchemes"] = {"key": scheme}
    paths: dict[str, Schema] = {}
    for key, route in routes.items():
        operation = _operation(key, route, config=config)
        paths.setdefault(path_of(key), {})[route.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tailorbird",
            "version": "1",
            "description": "API of a service on Ray Serve. Every response of a replica to "
            "a valid request has the header `x-request-id`, which is logged: the request's own "
            "value if it has 1 to 128 letters, digits, dots, dashes and underscores, else a "
            "generated one.",
        },
        "servers": [{"url": ".", "description": "The server of this document"}],
        "paths": paths,
        "components": components,
        "x-errors": {str(status): text for status, text in ERROR_DESCRIPTIONS.items()},
    }


def _operation(key: str, route: Route, *, config: ServingConfig) -> Schema:
    operation = OPERATIONS[key]
    documented: Schema = {
        "operationId": re.sub(r"[^a-z0-9]+", "_", key.lower()).strip("_"),
        "summary": operation.summary,
        "responses": {
            str(operation.status): _response(operation),
            "default": {"$ref": "#/components/responses/Error"},
        },
    }
    if ID in key:
        documented["parameters"] = [
            {
                "name": "id",
                "in": "path",
                "required": True,
                "description": "The `id` of the response that contains it.",
                "schema": {"type": "string"},
            }
        ]
    if operation.request is not None:
        text = f"At most {MAX_BODY_BYTES} bytes."
        if operation.request is schemas.ClassifyRequest:
            text += f" A text has at most {MAX_TEXT_BYTES} bytes."
        content = {JSON: {"schema": _ref(operation.request), "example": operation.example}}
        documented["requestBody"] = {"required": True, "description": text, "content": content}
    if config.api_keys is not None and not route.open:
        documented["security"] = [{"key": []}]
        if route.scopes:
            scopes = " or ".join(f"`{scope}`" for scope in route.scopes)
            documented["description"] = f"The key needs the scope {scopes}."
    return documented


def _response(operation: Operation) -> Schema:
    schema = _ref(operation.response) if operation.response else {"type": "object"}
    content: Schema = {JSON: {"schema": schema}}
    if operation.events is not None:
        data = {
            "type": "string",
            "description": f"A {operation.events.__name__} as JSON. The last event is [DONE].",
        }
        text = "server-sent events, if `stream` is true"
        event = {
            "type": "object",
            "description": text,
            "properties": {"data": data},
            "required": ["data"],
        }
        content["text/event-stream"] = {"schema": event}
    return {"description": operation.summary, "content": content}


def _error() -> Schema:
    """Return the response of all errors."""
    proxy = {"schema": {"type": "string", "description": "Sent by HAProxy or by Serve's proxy."}}
    return {
        "description": "An error. Its message states what is allowed.",
        "content": {JSON: {"schema": _ref(schemas.ErrorBody)}, HTML: proxy, "text/plain": proxy},
        "headers": {
            "retry-after": {
                "schema": {"type": "integer"},
                "description": "Seconds; only with status 429.",
            }
        },
    }


def _schemas(routes: Mapping[str, Route]) -> Schema:
    """Return the schemas of all requests and responses."""
    models: list[type[BaseModel]] = [schemas.ErrorBody]
    for path in routes:
        operation = OPERATIONS[path]
        models += filter(None, (operation.request, operation.response, operation.events))
    _, generated = models_json_schema([(model, "validation") for model in models], ref_template=REF)
    components: Schema = generated["$defs"]
    if "ClassifyRequest" in components:
        for name in PER_TEXT_FIELDS:
            for kind in components["ClassifyRequest"]["properties"][name]["anyOf"]:
                if kind.get("type") == "array":
                    kind |= {"minItems": 1, "maxItems": MAX_TEXTS}
    return components


def _ref(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": REF.format(model=model.__name__)}
