"""Parse the answers of an endpoint to requests for a chat completion, and the events of streamed
answers."""

import math
from dataclasses import dataclass, replace
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tailorbird.models.endpoint.errors import EndpointAnswerInvalid, EndpointUnreachable
from tailorbird.models.endpoint.fault import CONTENT_CODES, TOO_LONG

REFUSALS = (*CONTENT_CODES, TOO_LONG)
"""Error codes for a request that is refused because of its texts. Other requests can be
answered."""

NumTokens = Annotated[int, Field(ge=0)]
ModelName = Annotated[str, Field(max_length=256)]
"""The name of a model is stored with each answer, and written to logs."""


@dataclass(frozen=True)
class EndpointAnswer:
    """The answer of an endpoint to a request, or a part of a streamed answer."""

    text: str
    finish_reason: str | None
    """Only in the last part. Of `REFUSALS`, without a text, if the endpoint refused the request."""
    input_tokens: int | None  # None if the endpoint does not report it
    output_tokens: int | None
    model: str
    """Model that the endpoint named; empty in a refused answer, and in a part without it."""
    logprobs: tuple[float, ...] | None
    """Of each output token; None in a part, or if the endpoint returns none."""
    omitted: tuple[str, ...] = ()
    """Parameters that the endpoint refused, so the request was sent without them."""

    @property
    def refused(self) -> bool:
        """Return whether the endpoint refused the request or the answer because of its text."""
        return not self.text and self.finish_reason in REFUSALS

    @property
    def truncated(self) -> bool:
        """Return whether the answer ended at `max_tokens`."""
        return self.finish_reason == "length"

    @property
    def confidence(self) -> float | None:
        """Return exp of the mean log-probability of the output tokens, or None without
        log-probabilities."""
        if not self.logprobs:
            return None
        return math.exp(sum(self.logprobs) / len(self.logprobs))

    @property
    def probability(self) -> float | None:
        """Return the probability of the whole answer, or None without log-probabilities."""
        if not self.logprobs:
            return None
        return math.exp(sum(self.logprobs))


NO_ANSWER = EndpointAnswer("", None, input_tokens=None, output_tokens=None, model="", logprobs=None)


def refused_answer(code: str) -> EndpointAnswer:
    """Return the empty answer to a request that was refused with a code of `REFUSALS`; it has no
    tokens to pay."""
    return replace(NO_ANSWER, finish_reason=code, input_tokens=0, output_tokens=0)


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


PartT = TypeVar("PartT", bound=_Part)


class _Token(_Part):
    logprob: float


class _Logprobs(_Part):
    content: list[_Token] | None = Field(default=None, fail_fast=True)

    @property
    def values(self) -> tuple[float, ...] | None:
        """The log-probability of each token, or None without tokens."""
        return tuple(min(token.logprob, 0.0) for token in self.content or ()) or None


class _Message(_Part):
    content: str | None = None


class _Choice(_Part):
    message: _Message
    finish_reason: str | None = None
    logprobs: _Logprobs | None = None


class _Usage(_Part):
    prompt_tokens: NumTokens
    completion_tokens: NumTokens


class _Completion(_Part):
    model: ModelName = Field(min_length=1)
    choices: list[_Choice] = Field(min_length=1, fail_fast=True)
    usage: _Usage | None = None


class _Continuation(_Part):
    delta: _Message = _Message()
    finish_reason: str | None = None


class _UsageSoFar(_Usage):
    completion_tokens: NumTokens = 0


class _Event(_Part):
    model: ModelName | None = None
    choices: list[_Continuation] = Field(default=[], fail_fast=True)
    usage: _UsageSoFar | None = None
    error: object = None


def parse_completion(content: bytes, *, url: str) -> EndpointAnswer:
    """Return the answer in the body of a response; raise EndpointAnswerInvalid if it is not a chat
    completion."""
    completion = _parsed(_Completion, content, url=url)
    choice = completion.choices[0]
    answer = replace(
        NO_ANSWER,
        text=(choice.message.content or "").strip(),
        finish_reason=choice.finish_reason,
        model=completion.model,
        logprobs=choice.logprobs.values if choice.logprobs else None,
    )
    return _with_usage(answer, completion.usage)


def parse_event(data: str, *, url: str) -> EndpointAnswer:
    """Return the part of an answer in the data of an event.

    Raises EndpointAnswerInvalid if it is not in OpenAI's format, and EndpointUnreachable if it is
    an error.
    """
    event = _parsed(_Event, data, url=url)
    if event.error is not None:
        raise EndpointUnreachable(f"{url} reported an error within a stream")
    choice = next(iter(event.choices), _Continuation())
    part = replace(
        NO_ANSWER,
        text=choice.delta.content or "",
        finish_reason=choice.finish_reason,
        model=event.model or "",
    )
    return _with_usage(part, event.usage)


def _with_usage(answer: EndpointAnswer, usage: _Usage | None) -> EndpointAnswer:
    if usage is None:
        return answer
    return replace(answer, input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)


def _parsed(kind: type[PartT], content: bytes | str, *, url: str) -> PartT:
    """Return an answer or event; its first fault is in the error, without the answer's text."""
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        position = ".".join(map(str, fault["loc"])) or "body"
        raise EndpointAnswerInvalid(
            f"{url} did not answer in the format of a chat completion ({position}: "
            f"{fault['msg']}); check that url of the endpoint is the base URL of an "
            "OpenAI-compatible server"
        ) from None
