"""The responses of a service: answers, models and errors."""

from typing import TypeVar

import httpx2
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tailorbird.models.endpoint.client import retry_after_s


class ServiceError(RuntimeError):
    """A request that the service did not answer. `status` is the HTTP status; None if there was no
    valid response.

    `type` is the service's name of the error, for example `missing_api_key`, and `retry_after_s`
    the time in seconds after which a repetition can succeed, if the service states them.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        type: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.type = type
        self.retry_after_s = retry_after_s


class Received(BaseModel):
    """A part of a response. Unknown fields are ignored, so a client can use a newer service."""

    model_config = ConfigDict(frozen=True, extra="ignore")


ReceivedT = TypeVar("ReceivedT", bound=Received)


class ServedModel(Received):
    """A model of a service."""

    id: str
    """Value for `model` in requests: `champion`, `baseline`, `challenger` or a version."""
    name: str
    version: str
    kind: str
    digest: str
    """SHA-256 of the version's manifest."""
    classes: tuple[str, ...] = ()
    """Names of the classes; empty for a chat model."""
    verdict: str | None = None
    """Summary of the verdict that selected the champion; None for other models."""


class Models(Received):
    data: tuple[ServedModel, ...]


class Answered(Received):
    """Fields of an answer, under their names in `Answer`."""

    answered_by: str | None = None
    fallback: bool = False
    reported_model: str | None = None


class Result(Answered):
    output: str | int = Field(alias="label")
    confidence: float | None = Field(alias="score")
    scores: dict[str, float] | None = None


class Classified(Received):
    request_id: str
    version: str
    results: list[Result]


class Text(Received):
    content: str | None = None


class Choice(Answered):
    message: Text = Text()  # of a complete answer
    delta: Text = Text()  # of an event of a stream
    finish_reason: str | None = None
    confidence: float | None = None


class Completion(Received):
    id: str
    version: str
    choices: list[Choice] = Field(max_length=1)


class Error(Received):
    message: str
    type: str | None = None


class ErrorBody(Received):
    error: Error


def parse(kind: type[ReceivedT], content: str | bytes, *, url: str) -> ReceivedT:
    """Return a response or an event of a stream; raise ServiceError if it is an error or has
    another format."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        failure = _error_of(content)
        if failure is not None:
            raise ServiceError(
                f"{url} failed within the answer: {failure.message}", type=failure.type
            ) from None
        fault = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in fault["loc"]) or "body"
        message = f"{url} is not a service of this kind: {where}: {fault['msg']}; check the address"
        raise ServiceError(message, status=200) from None


def refusal(response: httpx2.Response, content: bytes, *, url: str) -> ServiceError:
    """Return the error of a response; a proxy's response is not in the service's format, and is not
    repeated."""
    failure = _error_of(content)
    if failure is None:
        stated = "; check the address of the service"
    else:
        stated = f": {failure.message}"
    return ServiceError(
        f"{url} answered {response.status_code}{stated}",
        status=response.status_code,
        type=failure.type if failure else None,
        retry_after_s=retry_after_s(response.headers.get("Retry-After")),
    )


def unreachable(error: httpx2.HTTPError, *, url: str) -> ServiceError:
    """Return the error of a request without a response."""
    if isinstance(error, httpx2.TimeoutException):
        return ServiceError(
            f"{url} did not answer in time; raise timeout_s or send the request again"
        )
    reason = str(error) or type(error).__name__
    return ServiceError(
        f"{url} cannot be reached ({reason}); check the address and that the task is served"
    )


def is_address(url: str) -> bool:
    """Return whether a text is the address of a service."""
    try:
        address = httpx2.URL(url)
    except httpx2.InvalidURL:
        return False
    port_exists = address.port is None or 0 < address.port < 2**16
    return (
        address.scheme in ("http", "https")
        and bool(address.host)
        and port_exists
        and not {"?", "#"} & set(url)
    )


def _error_of(content: str | bytes) -> Error | None:
    try:
        return ErrorBody.model_validate_json(content).error
    except ValidationError:
        return None
