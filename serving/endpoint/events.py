"""Streams of an endpoint: server-sent events in OpenAI's format."""

from collections.abc import AsyncGenerator, Mapping
from typing import NamedTuple

import httpx2
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tailorbird.models.endpoint.client import MAX_ANSWER_BYTES
from tailorbird.models.endpoint.completion import ModelName, NumTokens
from tailorbird.models.endpoint.errors import EndpointAnswerInvalid, EndpointUnreachable

LAST_EVENT = "[DONE]"
STREAMED: Mapping[str, JsonValue] = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields of a request whose answer is streamed, with the number of tokens in the last event."""

Body = Mapping[str, JsonValue]  # a request in OpenAI's format


class Piece(NamedTuple):
    """A part of an answer; the whole answer if it is not streamed."""

    text: str = ""
    finish_reason: str | None = None  # in the last part with a text
    model: str | None = None  # the model that the endpoint reports
    input_tokens: int | None = None  # in the last part, if the endpoint reports them
    output_tokens: int | None = None
    probability: float | None = None
    """Probability of the whole answer; None for a stream, or if the endpoint returns no log-probabilities."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _Delta(_Part):
    content: str | None = None


class _Choice(_Part):
    delta: _Delta = _Delta()
    finish_reason: str | None = None


class _Usage(_Part):
    prompt_tokens: NumTokens
    completion_tokens: NumTokens = 0


class _Event(_Part):
    model: ModelName | None = None
    choices: list[_Choice] = Field(default=[], fail_fast=True)
    usage: _Usage | None = None
    error: object = None


async def streamed_pieces(response: httpx2.Response, *, url: str) -> AsyncGenerator[Piece, None]:
    """Yield the parts of a streamed answer.

    Raises EndpointAnswerInvalid for an event that is not in OpenAI's format, or if there are more than
    `MAX_ANSWER_BYTES`, and EndpointUnreachable for an error within the stream or a stream without an end.
    """
    finished, size = False, 0
    try:
        async for event in httpx2.EventSource(response):
            size += len(event.data)
            if max(size, response.num_bytes_downloaded) > MAX_ANSWER_BYTES:  # the events can be compressed
                raise EndpointAnswerInvalid(f"a stream of {url} has more than {MAX_ANSWER_BYTES:,} bytes")
            if event.data == LAST_EVENT:
                break
            piece = _piece(event.data, url=url)
            finished = finished or piece.finish_reason is not None
            yield piece
    except httpx2.SSEError as error:
        raise EndpointAnswerInvalid(f"{url} did not answer with server-sent events: {error}") from None
    if not finished:
        raise EndpointUnreachable(f"{url} ended a stream before the end of the answer")


def _piece(data: str, *, url: str) -> Piece:
    try:
        event = _Event.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        raise EndpointAnswerInvalid(f"{url} sent an event that is not a part of an answer: {fault['msg']}") from None
    if event.error is not None:
        raise EndpointUnreachable(f"{url} reported an error within a stream")
    choice = event.choices[0] if event.choices else _Choice()
    counts = (event.usage.prompt_tokens, event.usage.completion_tokens) if event.usage else (None, None)
    return Piece(choice.delta.content or "", choice.finish_reason, event.model, *counts)
