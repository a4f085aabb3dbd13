"""The answers of a chat model as types, for the OpenAPI document; `chat_protocol.Shape` writes them."""

from typing import Literal

from pydantic import Field

from serving.protocol import Wire


class TokenUsage(Wire):
    prompt_tokens: int
    """Tokens read: template, system message and examples included."""
    completion_tokens: int
    """Tokens made."""
    total_tokens: int


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: str
    refusal: None
    """OpenAI's; never given here."""


class Delta(Wire):
    """What an event adds to the message."""

    role: Literal["assistant"] | None = None
    """In the first event."""
    content: str | None = None


class _Choice(Wire):
    index: Literal[0]
    logprobs: None
    """OpenAI's; never given here."""


class ChatChoice(_Choice):
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    """`length` where the answer was cut at max_tokens."""


class CompletionChoice(_Choice):
    text: str
    finish_reason: Literal["stop", "length"]
    """`length` where the answer was cut at max_tokens."""


class ChatChunkChoice(_Choice):
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
    """In the last event that has a choice."""


class CompletionChunkChoice(_Choice):
    text: str
    finish_reason: Literal["stop", "length"] | None
    """In the last event that has a choice."""


class _Head(Wire):
    id: str
    """Ends with the request's id, which is also in the header `x-request-id`."""
    created: int
    """Seconds since 1970."""
    model: str
    version: str
    """The version that answered."""


class ChatAnswer(_Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice] = Field(min_length=1, max_length=1)
    usage: TokenUsage


class ChatChunk(_Head):
    """One event of a stream; the last is `[DONE]`, or an error where the answer broke off."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(max_length=1)
    """None in the event that counts the tokens."""
    usage: TokenUsage | None = None


class CompletionAnswer(_Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice] = Field(min_length=1, max_length=1)
    usage: TokenUsage


class CompletionChunk(_Head):
    """One event of a stream; the last is `[DONE]`, or an error where the answer broke off."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice] = Field(max_length=1)
    """None in the event that counts the tokens."""
    usage: TokenUsage | None = None
