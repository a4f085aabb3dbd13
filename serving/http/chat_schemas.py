"""What crosses the wire of a chat model: OpenAI's requests, as far as they can be honoured, and its answers."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from serving.http.schemas import CHAMPION, CHAT_ID, COMPLETION_ID, MAX_ATTRIBUTE_CHARS, RequestError, Wire


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


IGNORED = (
    "metadata",
    "store",
    "service_tier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
)
"""Fields that change no answer."""
NEUTRAL: Mapping[str, Any] = {
    "n": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "logit_bias": {},
    "logprobs": False,
    "top_logprobs": 0,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "modalities": ["text"],
}
"""Fields that are taken with the value that asks for nothing, and with no other."""
TEXT_NEUTRAL: Mapping[str, Any] = {**NEUTRAL, "best_of": 1, "echo": False, "suffix": ""}
"""The same where a text is continued."""
MAX_STOPS = 4
_STOP = f"must be a text or a list of 1 to {MAX_STOPS} texts, none of them empty"
_CONTENT = 'must be a text, or a list of parts {"type": "text", "text": ...}'

_Stop = Annotated[StrictStr, Field(min_length=1)]


class _RequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class TextPart(_RequestModel):
    type: Literal["text"]
    text: StrictStr


class ChatMessage(_RequestModel):
    role: Literal["system", "user", "assistant"]
    content: StrictStr | list[TextPart]

    @property
    def text(self) -> str:
        """The content, its parts put together."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_RequestModel):
    include_usage: StrictBool | None = None
    """Whether a last event, without choices, counts the tokens."""


class PromptRequest(_RequestModel):
    """What requests for words have in common."""

    model: StrictStr = CHAMPION
    """`champion`, or the name, version or `name@version` of the model that serves."""
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """OpenAI's newer name of `max_tokens`; where both are given, this one holds."""
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """Tokens of the answer at most; without either, what answers were evaluated with."""
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    """0, the default, is what was evaluated: the most likely token each time."""
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Above temperature 0, tokens are drawn from the likeliest that have this probability together."""
    seed: StrictInt | None = None
    """Draws the same tokens from the same probabilities."""
    stop: _Stop | Annotated[list[_Stop], Field(min_length=1, max_length=MAX_STOPS)] | None = None
    """Texts before which the answer ends."""
    stream: StrictBool | None = None
    """Whether the answer comes in parts, as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    safety_identifier: object = None
    """Whom the request is about, by an id of the caller's own; the request log keeps a keyed hash of a short text."""
    user: object = None
    """The same by OpenAI's older name."""

    @property
    def subject(self) -> str | None:
        """Whom it is about, where that is a text that can be kept."""
        given = self.safety_identifier or self.user
        return given if isinstance(given, str) and len(given) <= MAX_ATTRIBUTE_CHARS else None

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop texts as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Tokens that the answer is asked to have at most."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


PromptRequestT = TypeVar("PromptRequestT", bound=PromptRequest)


class ChatRequest(PromptRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation; the last message is the user's. A system message stands in place of the version's own."""

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """The messages as turns."""
        return tuple((message.role, message.text) for message in self.messages)


class CompletionRequest(PromptRequest):
    prompt: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=1)]
    """A text that is continued as it stands: no template, no system message, no examples; no verdict is about that."""

    @property
    def text(self) -> str:
        """The prompt as one text."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


class Usage(NamedTuple):
    """Tokens read and made."""

    prompt_tokens: int
    completion_tokens: int

    def to_dict(self) -> dict[str, int]:
        """As it is written."""
        return self._asdict() | {"total_tokens": self.prompt_tokens + self.completion_tokens}


def parse_chat(body: bytes) -> ChatRequest:
    """The request in a body; raises RequestError 400 for whatever cannot be taken, and names the field."""
    request = _parse(ChatRequest, body, neutral=NEUTRAL)
    for place, message in enumerate(request.messages):
        for name, value in (message.model_extra or {}).items():
            if value and name != "name":
                raise _invalid_field(f"messages.{place}.{name}", "a message has a role and a content, and no more")
    if request.messages[-1].role != "user":
        raise _invalid_field("messages", f"the last must be the user's, not the {request.messages[-1].role}'s")
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """As `parse_chat`."""
    return _parse(CompletionRequest, body, neutral=TEXT_NEUTRAL)


def _parse(kind: type[PromptRequestT], body: bytes, *, neutral: Mapping[str, Any]) -> PromptRequestT:
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error) from None
    for name, value in (request.model_extra or {}).items():
        if name in IGNORED or value is None or (name in neutral and value == neutral[name]):
            continue
        told = f"only {json.dumps(neutral[name])} is taken" if name in neutral else "there is no such field here"
        raise _invalid_field(name, f"{told}; leave it out")
    if request.stream_options is not None and not request.stream:
        raise _invalid_field("stream_options", "only with stream: true")
    return request


@dataclass(frozen=True)
class AnswerFormat:
    """How an endpoint's answers are written, in OpenAI's words."""

    route: str
    prefix: str
    """Of the answer's id, before the request's."""
    object: str
    chunk: str
    """`object` of an event."""
    chat: bool

    def head(self, object: str, *, request_id: str, created: int, model: str, version: str) -> dict[str, Any]:
        """What an answer, and each event of a stream, begins with."""
        return {
            "id": f"{self.prefix}{request_id}",
            "object": object,
            "created": created,
            "model": model,
            "version": version,
        }

    def whole(self, head: dict[str, Any], *, text: str, finish_reason: str, usage: Usage) -> bytes:
        """An answer that is not streamed."""
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self.chat else {"text": text}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return _json(head | {"choices": [choice], "usage": usage.to_dict()})

    def first(self, head: dict[str, Any]) -> list[bytes]:
        """The events before anything is said."""
        return [self._event(head, said={"delta": {"role": "assistant", "content": ""}})] if self.chat else []

    def piece(self, head: dict[str, Any], *, text: str) -> bytes:
        """An event with what is new."""
        return self._event(head, said={"delta": {"content": text}} if self.chat else {"text": text})

    def last(self, head: dict[str, Any], *, finish_reason: str | None) -> bytes:
        """The event after all is said."""
        return self._event(head, said={"delta": {}} if self.chat else {"text": ""}, finish_reason=finish_reason)

    def _event(self, head: dict[str, Any], *, said: dict[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return event(_json(head | {"choices": [choice]}))


CHAT = AnswerFormat("chat", CHAT_ID, "chat.completion", "chat.completion.chunk", chat=True)
COMPLETION = AnswerFormat("completion", COMPLETION_ID, "text_completion", "text_completion", chat=False)


def usage_event(head: dict[str, Any], *, usage: Usage) -> bytes:
    """The event that counts the tokens."""
    return event(_json(head | {"choices": [], "usage": usage.to_dict()}))


def event(data: bytes) -> bytes:
    """A server-sent event."""
    return b"data: " + data + b"\n\n"


LAST_EVENT = event(b"[DONE]")


def _json(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _invalid_field(param: str, message: str) -> RequestError:
    return RequestError(400, "invalid_request", f"{param}: {message}", param=param)


def _invalid_request(error: ValidationError) -> RequestError:
    """Says of the first fault where it is and what is allowed; never what was given."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        return RequestError(400, "invalid_json", f"the body is not JSON: {fault['ctx']['error']}")
    loc = fault["loc"]
    if loc[:1] == ("stop",):
        return _invalid_field("stop", _STOP)
    if loc[:1] == ("messages",) and loc[2:3] == ("content",) and fault["type"] != "missing":
        return _invalid_field(f"messages.{loc[1]}.content", _CONTENT)
    return _invalid_field(".".join(str(part) for part in loc) or "body", fault["msg"])
