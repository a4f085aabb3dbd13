"""HTTP requests and responses of classification, and of the routes of all tasks (models, feedback,
batches, errors)."""

import asyncio
import json
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from serving.http.json_values import has_more_values
from serving.request_log.attributes import LIMITS, MAX_ATTRIBUTES, Attribute, Attributes
from tailorbird.config.answers import THUMBS
from tailorbird.registry.hybrid_routing import PartName

CHAMPION = "champion"
BASELINE = "baseline"
CHAT_ID = "chatcmpl-"  # precedes the request's id in the id of a chat response
LOCAL = ("127.0.0.1", "localhost", "::1")  # loopback host names
MAX_ANSWER_CHARS = 1 << 16  # of a correct answer in feedback
SCORES_AT_ONCE = 4096  # scores that are written without a pause, in about 4 ms
# values and names in a body, unless it may have very many texts; 330,000 lists take a second
MAX_VALUES = 20_000
VALUES_PER_TEXT = 2 * MAX_ATTRIBUTES + 2  # of a text with its attributes
Faults = Mapping[str, str | None]
"""Patterns of the paths of invalid values, and what is allowed; None for pydantic's message.

Group 1 is the field. The rest of a path names types of a union, or what the client sent.
"""
FAULTS: Faults = {
    r"(input)\..*": "must be a text or a list of texts",
    r"(attributes)(\..*)?": f"must be an object, or a list with one object per text; {LIMITS}",
}

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_AnswerId = Annotated[StrictStr, Field(pattern=rf"^({CHAT_ID})?[0-9a-f]{{32}}$")]
_Integer = Annotated[StrictInt, Field(ge=-(1 << 63), lt=1 << 63)]


class HttpModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


ModelT = TypeVar("ModelT", bound=BaseModel)


class ClassifyRequest(HttpModel):
    input: StrictStr | Annotated[list[StrictStr], Field(fail_fast=True)] = Field(
        union_mode="left_to_right"
    )
    """One text, or a list of texts."""
    model: StrictStr = CHAMPION
    """`champion`, `baseline`, `challenger`, or the version or `name@version` of a model that
    /v1/models lists."""
    scores: bool = Field(default=False, strict=True)
    """If true, return the probability of every class."""
    attributes: Attributes | Annotated[list[Attributes], Field(fail_fast=True)] | None = Field(
        default=None, union_mode="left_to_right"
    )
    """Attributes of the texts by name. A hybrid that routes by group uses the attribute with the
    name of its group column. Give one object for all texts, or a list with one object per text. An
    object has at most 32 attributes and 2,048 bytes; names and values have at most 256 characters.
    Other models only log them."""

    @property
    def texts(self) -> list[str]:
        """Return the input as a list."""
        if isinstance(self.input, str):
            return [self.input]
        return self.input


class FeedbackRequest(HttpModel):
    request_id: _AnswerId
    """The `request_id` of the answer that the feedback is about or, for chat, its `id`. Your own
    `X-Request-Id` is not accepted."""
    label: Attribute | _Integer | None = None
    """The correct label: a string, or an integer as in the answer. For chat, `good` or `bad`, short
    for a score of 1 or 0."""
    score: Annotated[float, Field(ge=0, le=1, strict=True)] | None = None
    """(chat only) The score of the answer, from 0 to 1."""
    correct_answer: (
        Annotated[StrictStr, Field(min_length=1, max_length=MAX_ANSWER_CHARS)] | None
    ) = None
    """(chat only) The answer that would have been correct. Requires `serving.log_texts` in the
    recipe."""
    row: Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] = 0
    """Position of the text in the request, starting at 0."""

    def require_fields_of(self, task: Literal["classification", "chat"]) -> None:
        """Raise RequestError 422 unless the request has a label or, for chat, a score or a correct
        answer."""
        fault = None
        is_scored = self.score is not None or self.correct_answer is not None
        if task == "classification":
            if self.label is None or is_scored:
                fault = "give `label` only"
        elif self.label not in (None, *THUMBS):
            fault = (
                f"for chat, `label` is {' or '.join(THUMBS)}; send a correct answer as "
                "`correct_answer`"
            )
        elif self.label is not None and self.score is not None:
            fault = "give `label` or `score`, not both"
        elif self.label is None and not is_scored:
            fault = "give `label`, `score` or `correct_answer`"
        if fault:
            raise RequestError(422, "invalid_request", fault, param="label")

    @property
    def bare_id(self) -> str:
        """Return the request's id without the prefix that a chat response adds."""
        return self.request_id.removeprefix(CHAT_ID)


class Result(HttpModel):
    label: str | int
    """The predicted class; an integer if the labels of the training rows are integers."""
    score: float | None
    """Probability of the label, after temperature scaling; null if an endpoint answered without
    log-probabilities."""
    scores: dict[str, float] | None = None
    """Probability of every class, after temperature scaling, if requested; absent for an answer of
    an endpoint."""
    answered_by: PartName | None = None
    """(hybrids only) The part that answered. In a cascade, `first` is the cheap part."""
    fallback: bool | None = None
    """(hybrids only) True if the other part should have answered, but failed; absent otherwise."""
    reported_model: str | None = None
    """Only for an answer of an endpoint: the model that the endpoint reported."""


class ClassifyResponse(HttpModel):
    request_id: str
    """Random id of the answer, for feedback. The header `x-request-id` is a different id."""
    model: str
    version: str
    results: list[Result]
    """One result per text, in input order."""


class ServedModel(HttpModel):
    """A model in OpenAI's format, with additional fields."""

    id: str
    """Value for `model` in requests."""
    object: Literal["model"] = "model"
    created: int
    """Creation time of the version as Unix time in seconds."""
    owned_by: Literal["tailorbird"] = "tailorbird"
    name: str
    version: str
    kind: str
    description: str
    """Name of the kind for readers."""
    digest: str
    """SHA-256 of the version's manifest."""
    system: str | None = None
    """System prompt of the version; null without one, and for keys without the scope `read` or
    `admin`."""
    classes: list[str]
    """Names of the classes; empty for a chat model."""
    cost: str | None = None
    """Measured cost of serving the version, in words; null if not measured, and for keys without
    `read` or `admin`."""
    verdict: str | None = None
    """Summary of the verdict that selected the champion; null for other models."""


class Models(HttpModel):
    object: Literal["list"] = "list"
    data: list[ServedModel]
    examples: list[str] = []
    """Example texts or messages: `serving.examples` of the recipe."""
    feedback: bool = False
    """True if the service stores feedback: the recipe sets `serving.request_log`."""


class Health(HttpModel):
    status: Literal["up"]


class Readiness(HttpModel):
    status: Literal["ready", "loading"]
    """`ready` with HTTP status 200, `loading` with 503."""
    replica: str | None = None
    """Ray Serve's id of the replica."""
    config: str | None = None
    """Hash of the last `user_config` that the replica loaded or refused."""
    version: str | None = None
    """The champion's version."""
    digest: str | None = None
    """The champion's digest."""
    refused: str | None = None
    """Digest of the configured champion if it could not be loaded. The previous champion still
    serves."""
    reason: str | None = None
    """Reason of the refusal."""
    challenger: str | None = None
    """The challenger's digest."""
    absent: dict[str, str] | None = None
    """Reasons why other configured models could not be loaded, by model name."""


class ErrorDetail(HttpModel):
    """An error in OpenAI's format."""

    message: str
    type: str
    param: str | None
    """The invalid field, or null."""
    code: str | None
    """OpenAI's error code, or null."""


class ErrorBody(HttpModel):
    error: ErrorDetail


class RequestError(ValueError):
    """A request that is answered with status 4xx or 5xx. The message states what is allowed."""

    def __init__(
        self,
        status: int,
        type: str,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, type, message)
        self.status = status
        self.type = type
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    @property
    def reason(self) -> str:
        """Return the message for the log, with the internal error that it was raised from."""
        if self.__cause__ is None:
            return self.message
        return f"{self.message} ({self.__cause__})"

    @property
    def body(self) -> bytes:
        """Return the response body as JSON."""
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump_json().encode()


def is_client_error(error: Exception) -> bool:
    """Return True for an error of the request itself, with a status from 400 to 499."""
    return isinstance(error, RequestError) and error.status < 500


def is_too_long(error: Exception) -> bool:
    """Return True if a request exceeds the length of a chat model; another model may accept it."""
    return isinstance(error, RequestError) and error.type == "too_long"


def error_of_text(error: RequestError, *, index: int) -> RequestError:
    """Return an error with the index of the text at fault, from 0, in the request's `input`."""
    message = f"input[{index}]: {error.message}"
    param = error.param or "input"
    return RequestError(
        error.status, error.type, message, param=param, code=error.code, headers=error.headers
    )


def no_part_answers() -> RequestError:
    """Return the error for a request that no part of a hybrid can answer."""
    return RequestError(503, "unavailable", "no part of the hybrid answers; retry later")


def parse_request(body: bytes, *, max_texts: int, max_text_bytes: int) -> ClassifyRequest:
    """Return the request in a body.

    Raises the errors of `parse_body`, and 422 for too many texts, a text that is too large, or too
    many attributes.
    """
    request = parse_body(
        ClassifyRequest, body, max_values=max(MAX_VALUES, VALUES_PER_TEXT * (max_texts + 1))
    )
    num_texts = len(request.texts)
    if not 0 < num_texts <= max_texts:
        raise invalid_field("input", f"give 1 to {max_texts} texts, not {num_texts}", status=422)
    for row, text in enumerate(request.texts):
        if (num_bytes := len(text.encode())) > max_text_bytes:
            message = (
                f"the text at position {row} (from 0) has {num_bytes} bytes; a text may have at "
                f"most {max_text_bytes}"
            )
            raise invalid_field("input", message, status=422)
    attributes = request.attributes
    if isinstance(attributes, list) and len(attributes) != num_texts:
        message = f"give one object, or a list of {num_texts} objects, not {len(attributes)}"
        raise invalid_field("attributes", message, status=422)
    return request


def parse_body(
    model: type[ModelT],
    body: bytes,
    *,
    max_values: int = MAX_VALUES,
    status: int = 422,
    faults: Faults = FAULTS,
) -> ModelT:
    """Return the request in a body.

    Raises RequestError 400 if it is not JSON, 413 if it has more JSON values and names than
    `max_values`, and `status` if it is not valid.
    """
    if has_more_values(body, max_values):
        message = (
            f"the body has more than {max_values:,} JSON values and names; send fewer in each "
            "request"
        )
        raise RequestError(413, "body_too_large", message)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error, status=status, faults=faults) from None


async def write_answer(
    fields: Mapping[str, object], *, results: Sequence[Mapping[str, object]]
) -> bytes:
    """Return the JSON of a ClassifyResponse, without the cost of building pydantic models.

    Other requests run between parts of the results: 256 texts with 1,000 scores each take 0.2 s.
    """
    written = list[bytes]()
    num_scores = 0
    for result in results:
        written.append(_json(result))
        scores = result.get("scores")
        num_scores += len(scores) if isinstance(scores, Mapping) else 0
        if num_scores > SCORES_AT_ONCE:
            num_scores = 0
            await asyncio.sleep(0)
    return _json(fields)[:-1] + b',"results":[' + b",".join(written) + b"]}"


def _json(value: object) -> bytes:
    return _ENCODER.encode(value).encode()


def _request_error(error: ValidationError, *, status: int, faults: Faults) -> RequestError:
    """Return an error that names the first invalid field and the allowed values, but not the value
    that was sent."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        message = f"the body is not JSON: {fault['ctx']['error']}"
        return RequestError(400, "invalid_json", message)
    field = ".".join(str(part) for part in fault["loc"]) or "body"
    message = fault["msg"].removeprefix("Value error, ")
    for pattern, allowed in faults.items():
        match = re.fullmatch(pattern, field, re.DOTALL)
        if match is not None:
            field = match[1]
            message = allowed or message
    return invalid_field(field, message, status=status)


def invalid_field(field: str, message: str, *, status: int) -> RequestError:
    """Return the error for a field that is not valid."""
    return RequestError(status, "invalid_request", f"{field}: {message}", param=field)
