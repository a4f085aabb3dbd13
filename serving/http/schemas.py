"""Requests and answers over HTTP: classification, and what all tasks share (models, feedback, batches, errors)."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

CHAMPION = "champion"
PRETRAINED = "pretrained"
CHAT_ID, COMPLETION_ID = "chatcmpl-", "cmpl-"  # prefixes of the ids of a chat model's answers, before the request's id
LOCAL = ("127.0.0.1", "localhost", "::1")  # host names of this machine alone
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 256

_Attribute = Annotated[StrictStr, Field(max_length=MAX_ATTRIBUTE_CHARS)]
Attributes = Annotated[dict[_Attribute, _Attribute], Field(max_length=MAX_ATTRIBUTES)]  # attributes of a text, by name


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


WireT = TypeVar("WireT", bound=Wire)


class ClassifyRequest(Wire):
    input: StrictStr | list[StrictStr] = Field(union_mode="left_to_right")
    """One text, or a list of texts."""
    model: StrictStr = CHAMPION
    """`champion`, `pretrained`, `challenger`, or the version or `name@version` of one that /v1/models names."""
    scores: bool = Field(default=False, strict=True)
    """Whether each result has the probability of every class."""
    attributes: Attributes | list[Attributes] | None = None
    """Attributes by the name of the group column on which a hybrid routes: one object for all texts, or a list with one
    object a text. At most 32 names, and 256 characters a name or value. Other models ignore them."""
    subject: _Attribute | None = None
    """The person the request is about, by the caller's id; the request log keeps a keyed hash of it."""

    @property
    def texts(self) -> list[str]:
        """Return the input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class FeedbackRequest(Wire):
    request_id: _Attribute
    """The id of the answer that it is about; every replica accepts it."""
    label: _Attribute
    """The correct label."""
    row: Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] = 0
    """Position of the text in the request, from 0."""

    @property
    def bare_id(self) -> str:
        """Return the request's id without the prefix of a chat answer's `id`."""
        return self.request_id.removeprefix(CHAT_ID).removeprefix(COMPLETION_ID)


class BatchRequest(Wire):
    input: StrictStr
    """URI of a Parquet file or of a folder of them, under one of the recipe's `serving.batch_prefixes`."""
    output: StrictStr
    """URI of a folder under one of these prefixes, empty or with this batch's own files."""
    model: StrictStr = CHAMPION
    """As in other requests; the version that it names now scores the whole batch, whatever is promoted meanwhile."""
    column: StrictStr | None = None
    """Column with the texts (`text`); for a chat model, with prompts or lists of `{role, content}` (`prompt`)."""
    id: StrictStr | None = None
    """Column that the output repeats as `id`; the output always has each row's position in the input as `row`."""


class BatchJob(Wire):
    format: Literal[1] = 1
    """Version of the state's format."""
    id: str
    """Hash of the input, the output and the version: the same request again starts no second job."""
    object: Literal["batch"] = "batch"
    status: Literal["queued", "running", "completed", "failed", "cancelled"]
    input: str
    output: str
    model: str
    version: str
    version_uri: str
    digest: str
    column: str
    id_column: str | None = None
    created_at: str
    updated_at: str
    rows_done: int = 0
    rows_total: int | None = None
    """None until the input's files have been listed."""
    error: str | None = None
    """Why it failed."""

    @property
    def is_unfinished(self) -> bool:
        """Return True if the job waits or works."""
        return self.status in ("queued", "running")


class Result(Wire):
    label: str
    """The most probable class."""
    score: float
    """Its probability, after temperature scaling (which was fitted on validation and changes no label)."""
    scores: dict[str, float] | None = None
    """Probability of every class, after temperature scaling, if requested."""
    answered_by: Literal["incumbent", "candidate"] | None = None
    """The part of a hybrid that answered; absent for other models."""


class ClassifyAnswer(Wire):
    request_id: str
    """Also in the header `x-request-id`."""
    model: str
    version: str
    results: list[Result]
    """One result a text, in the order of the input."""


class CompareAnswer(Wire):
    request_id: str
    pretrained: ClassifyAnswer
    champion: ClassifyAnswer


class ServedModel(Wire):
    """A model in OpenAI's format, with further fields."""

    id: str
    """Value of `model` in requests."""
    object: Literal["model"] = "model"
    created: int
    """Creation time of the version, in seconds since 1970."""
    owned_by: Literal["tailorbird"] = "tailorbird"
    name: str
    version: str
    kind: str
    digest: str
    """sha256 of the version's manifest."""
    classes: list[str]
    """Empty for a chat model."""
    verdict: str | None = None
    """The verdict that chose the champion, in a sentence; null for other models."""


class Models(Wire):
    object: Literal["list"] = "list"
    data: list[ServedModel]


class Health(Wire):
    status: Literal["up"]


class Readiness(Wire):
    status: Literal["ready", "loading"]
    """`ready`, or `loading` with code 503."""
    replica: str | None = None
    """Serve's id of the replica that answers."""
    config: str | None = None
    """`config_id` of the last configuration that the replica has loaded or refused."""
    version: str | None = None
    digest: str | None = None
    refused: str | None = None
    """Digest of the last configured version if it could not be loaded; the previous one still serves."""
    reason: str | None = None
    """Why it was refused."""
    challenger: str | None = None
    """Digest of the challenger."""
    absent: dict[str, str] | None = None
    """Configured models other than the champion that could not be loaded, and why."""


class ErrorDetail(Wire):
    """OpenAI's format."""

    message: str
    type: str
    param: str | None
    """The invalid field, if any."""
    code: str | None
    """OpenAI's name of the error, if any."""


class ErrorBody(Wire):
    error: ErrorDetail


class RequestError(ValueError):
    """A request that is answered with a 4xx or 5xx; the message says what is allowed."""

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
        self.status, self.type, self.message = status, type, message
        self.param, self.code, self.headers = param, code, headers

    @property
    def body(self) -> bytes:
        """Return the answer's JSON."""
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump_json().encode()


def parse_request(body: bytes, *, max_texts: int) -> ClassifyRequest:
    """Return the request in a body as `parse_body`; raise RequestError 422 also for too many texts or attributes."""
    request = parse_body(ClassifyRequest, body)
    num_texts = len(request.texts)
    if not 0 < num_texts <= max_texts:
        raise RequestError(422, "invalid_request", f"input: give 1 to {max_texts} texts, not {num_texts}")
    if isinstance(request.attributes, list) and len(request.attributes) != num_texts:
        reason = f"give one object for all texts or one for each of the {num_texts}, not {len(request.attributes)}"
        raise RequestError(422, "invalid_request", f"attributes: {reason}")
    return request


def parse_body(model: type[WireT], body: bytes) -> WireT:
    """Return the request in a body; raise RequestError 400 if it is not JSON, 422 if it is not valid."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error) from None


def write_answer(answer: dict[str, object]) -> bytes:
    """Return a ClassifyAnswer's JSON from its plain fields: the hot path builds no models."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


_ATTRIBUTES = (
    f"must be an object, or a list of one object a text, of at most {MAX_ATTRIBUTES} texts by name, "
    f"each of at most {MAX_ATTRIBUTE_CHARS} characters"
)


def _invalid_request(error: ValidationError) -> RequestError:
    faults = error.errors(include_url=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return RequestError(400, "invalid_json", f"the body is not JSON: {faults[0]['ctx']['error']}")
    messages = []
    for fault in faults[:3]:
        location = ".".join(str(part) for part in fault["loc"] if part not in ("str", "list[str]")) or "body"
        message = fault["msg"]
        if location == "input" and len(fault["loc"]) > 1:  # an error of each type of the union
            message = "must be a text or a list of texts"
        if fault["loc"][:1] == ("attributes",):  # the rest of the location may be a name that the client sent
            location, message = "attributes", _ATTRIBUTES
        if f"{location}: {message}" not in messages:
            messages.append(f"{location}: {message}")
    return RequestError(422, "invalid_request", "; ".join(messages))
