"""What crosses the wire: the classify request, its answer, the list of models, and the one shape of an error."""

import json

from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError

CHAMPION = "champion"


class Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ClassifyRequest(Wire):
    input: StrictStr | list[StrictStr] = Field(union_mode="left_to_right")
    """One text, or a list of texts."""
    model: StrictStr = CHAMPION
    """`champion`, or the name, version or `name@version` of the model that serves."""
    scores: bool = Field(default=False, strict=True)
    """Whether each result carries the probability of every class."""

    @property
    def texts(self) -> list[str]:
        """The input as a list."""
        return [self.input] if isinstance(self.input, str) else self.input


class Result(Wire):
    label: str
    """The most probable class."""
    score: float
    """Its probability, as the model's softmax gives it."""
    scores: dict[str, float] | None = None
    """Probability of every class, where asked for."""


class ClassifyAnswer(Wire):
    request_id: str
    """Also in the header `x-request-id`."""
    model: str
    version: str
    results: list[Result]
    """One a text, in the order of the input."""


class Served(Wire):
    id: str
    """What `model` in a request may say."""
    name: str
    version: str
    kind: str
    digest: str
    """sha256 of the version's manifest."""
    classes: list[str]


class Models(Wire):
    models: list[Served]


class Ready(Wire):
    status: str
    """`ready`, or `loading` with code 503."""
    version: str | None = None
    digest: str | None = None
    refused: str | None = None
    """Digest of the version asked for last, if it could not be loaded and the former one serves on."""
    reason: str | None = None
    """Why it was refused."""


class ErrorDetail(Wire):
    type: str
    message: str


class ErrorBody(Wire):
    error: ErrorDetail


class RequestError(ValueError):
    """A request that is answered with a 4xx or 503: what was given, what is allowed."""

    def __init__(self, status: int, type: str, message: str) -> None:
        super().__init__(status, type, message)
        self.status, self.type, self.message = status, type, message

    @property
    def body(self) -> bytes:
        """The answer's JSON."""
        return ErrorBody(error=ErrorDetail(type=self.type, message=self.message)).model_dump_json().encode()


def parse_request(body: bytes, *, max_texts: int) -> ClassifyRequest:
    """The request in a body; raises RequestError 400 for what is no JSON, 422 for what does not fit."""
    try:
        request = ClassifyRequest.model_validate_json(body)
    except ValidationError as error:
        raise _refusal(error) from None
    num_texts = 1 if isinstance(request.input, str) else len(request.input)
    if not 0 < num_texts <= max_texts:
        raise RequestError(422, "invalid_request", f"input: give 1 to {max_texts} texts, not {num_texts}")
    return request


def write_answer(answer: dict[str, object]) -> bytes:
    """A ClassifyAnswer's JSON from its plain fields: the hot path builds no models."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":")).encode()


def _refusal(error: ValidationError) -> RequestError:
    faults = error.errors(include_url=False, include_input=False)
    if faults[0]["type"] == "json_invalid":
        return RequestError(400, "invalid_json", f"the body is not JSON: {faults[0]['ctx']['error']}")
    messages = []
    for fault in faults[:3]:
        place = ".".join(str(part) for part in fault["loc"] if part not in ("str", "list[str]")) or "body"
        given = "must be a text or a list of texts" if place == "input" and fault["type"] != "missing" else fault["msg"]
        if f"{place}: {given}" not in messages:
            messages.append(f"{place}: {given}")
    return RequestError(422, "invalid_request", "; ".join(messages))
