"""What crosses the wire: the classify request, its answer, and of every task the list of models and an error."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

CHAMPION = "champion"
PRETRAINED = "pretrained"
CHAT_ID, COMPLETION_ID = "chatcmpl-", "cmpl-"
"""What the ids of a chat model's answers begin with, before the request's."""
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Names that only this machine answers to."""
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 256

_Attribute = Annotated[StrictStr, Field(max_length=MAX_ATTRIBUTE_CHARS)]
Attributes = Annotated[dict[_Attribute, _Attribute], Field(max_length=MAX_ATTRIBUTES)]
"""What a client knows of a text beside it, by name."""


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ClassifyRequest(Wire):
    input: StrictStr | list[StrictStr] = Field(union_mode="left_to_right")
    """One text, or a list of texts."""
    model: StrictStr = CHAMPION
    """`champion`, `pretrained`, `challenger`, or the version or `name@version` of one that /v1/models names."""
    scores: bool = Field(default=False, strict=True)
    """Whether each result carries the probability of every class."""
    attributes: Attributes | list[Attributes] | None = None
    """What a hybrid routes on, by the name of its group column: of all texts, or a list with one object a text.

    At most 32 names, and 256 characters a name or value. Other models ignore them.
    """
    subject: _Attribute | None = None
    """Whom the request is about, by an id of the caller's own; the request log keeps a keyed hash of it."""

    @property
    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class FeedbackRequest(Wire):
    request_id: _Attribute
    """Of the answer that it is about; any replica takes it."""
    label: _Attribute
    """What was right."""
    row: Annotated[int, Field(ge=0, lt=1 << 31, strict=True)] = 0
    """Which text of the request, from 0."""


class BatchRequest(Wire):
    input: StrictStr
    """URI of a Parquet file or of a folder of them, under one of the recipe's `serving.batch_prefixes`."""
    output: StrictStr
    """URI of a folder, the same; what lies there must be this batch's own."""
    model: StrictStr = CHAMPION
    """As in a request; the version that it names now answers the whole batch, whatever is promoted meanwhile."""
    column: StrictStr | None = None
    """With the texts (`text`); of a chat model with prompts (`prompt`) or lists of `{role, content}`."""
    id: StrictStr | None = None
    """A column that the output has too, as `id`; it always has each row's place in the input, as `row`."""


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
    """Its probability, after the version's temperature (which was fitted on validation and changes no label)."""
    scores: dict[str, float] | None = None
    """Probability of every class, after temperature, where asked for."""
    answered_by: Literal["incumbent", "candidate"] | None = None
    """Which part of a hybrid answered; absent where one model answers everything."""


class ClassifyAnswer(Wire):
    request_id: str
    """Also in the header `x-request-id`."""
    model: str
    version: str
    results: list[Result]
    """One a text, in the order of the input."""


class CompareAnswer(Wire):
    request_id: str
    pretrained: ClassifyAnswer
    champion: ClassifyAnswer


class ServedModel(Wire):
    """One model, in OpenAI's shape and with what ours have beside it."""

    id: str
    """What `model` in a request may say."""
    object: Literal["model"] = "model"
    created: int
    """When the version was made, in seconds since 1970."""
    owned_by: Literal["tailorbird"] = "tailorbird"
    name: str
    version: str
    kind: str
    digest: str
    """sha256 of the version's manifest."""
    classes: list[str]
    """None of a chat model."""
    verdict: str | None = None
    """Of the champion: the verdict that chose it, in a sentence."""


class Models(Wire):
    object: Literal["list"] = "list"
    data: list[ServedModel]


class Health(Wire):
    status: Literal["up"]


class Readiness(Wire):
    status: Literal["ready", "loading"]
    """`ready`, or `loading` with code 503."""
    replica: str | None = None
    """Who answers, as Serve names it."""
    config: str | None = None
    """`config_id` of what the replica was told last, and has loaded or refused."""
    version: str | None = None
    digest: str | None = None
    refused: str | None = None
    """Digest of the version asked for last, if it could not be loaded and the former one serves on."""
    reason: str | None = None
    """Why it was refused."""
    challenger: str | None = None
    """Digest of the challenger."""
    absent: dict[str, str] | None = None
    """Of the models asked for beside the champion, those that could not be loaded, and why."""


class ErrorDetail(Wire):
    """OpenAI's shape, whose clients read it."""

    message: str
    type: str
    param: str | None
    """The field that is at fault, where it is one."""
    code: str | None
    """OpenAI's name of the fault, where it has one."""


class ErrorBody(Wire):
    error: ErrorDetail


class RequestError(ValueError):
    """A request that is answered with a 4xx or 5xx: what was given, what is allowed."""

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
        """The answer's JSON."""
        detail = ErrorDetail(message=self.message, type=self.type, param=self.param, code=self.code)
        return ErrorBody(error=detail).model_dump_json().encode()


def parse_request(body: bytes, *, max_texts: int) -> ClassifyRequest:
    """The request in a body; raises RequestError 400 for what is no JSON, 422 for what does not fit."""
    try:
        request = ClassifyRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error) from None
    num_texts = 1 if isinstance(request.input, str) else len(request.input)
    if not 0 < num_texts <= max_texts:
        raise RequestError(422, "invalid_request", f"input: give 1 to {max_texts} texts, not {num_texts}")
    if isinstance(request.attributes, list) and len(request.attributes) != num_texts:
        raise RequestError(
            422,
            "invalid_request",
            f"attributes: give one object for all texts or one for each of the {num_texts}, "
            f"not {len(request.attributes)}",
        )
    return request


def parse_feedback(body: bytes) -> FeedbackRequest:
    """What was right, in a body; raises RequestError 400 for what is no JSON, 422 for what does not fit."""
    try:
        return FeedbackRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error) from None


def parse_batch(body: bytes) -> BatchRequest:
    """What a batch is to be, in a body; raises RequestError 400 for what is no JSON, 422 for what does not fit."""
    try:
        return BatchRequest.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error) from None


def write_answer(answer: dict[str, object]) -> bytes:
    """A ClassifyAnswer's JSON from its plain fields: the hot path builds no models."""
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
        place = ".".join(str(part) for part in fault["loc"] if part not in ("str", "list[str]")) or "body"
        texts = place == "input" and len(fault["loc"]) > 1  # of the union that a text or a list of them is
        given = "must be a text or a list of texts" if texts else fault["msg"]
        if fault["loc"][:1] == ("attributes",):  # the rest of the place may be a name that was given
            place, given = "attributes", _ATTRIBUTES
        if f"{place}: {given}" not in messages:
            messages.append(f"{place}: {given}")
    return RequestError(422, "invalid_request", "; ".join(messages))
