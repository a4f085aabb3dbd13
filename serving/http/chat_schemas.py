"""OpenAI's requests and answers of chat models: the types, and the checks of a request."""

import json
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr, ValidationError

from serving.http.schemas import CHAMPION, MAX_ATTRIBUTE_CHARS, RequestError, Wire


class TokenUsage(Wire):
    prompt_tokens: int
    """Tokens of the prompt, with template, system message and examples."""
    completion_tokens: int
    """Tokens of the answer."""
    total_tokens: int


class AssistantMessage(Wire):
    role: Literal["assistant"]
    content: str
    refusal: None
    """Part of OpenAI's format; always null."""


class Delta(Wire):
    """The part of the message that an event adds."""

    role: Literal["assistant"] | None = None
    """Only in the first event."""
    content: str | None = None


class _Choice(Wire):
    index: Literal[0]
    logprobs: None
    """Part of OpenAI's format; always null."""


class ChatChoice(_Choice):
    message: AssistantMessage
    finish_reason: Literal["stop", "length"]
    """`length` if the answer was cut at max_tokens."""


class CompletionChoice(_Choice):
    text: str
    finish_reason: Literal["stop", "length"]
    """`length` if the answer was cut at max_tokens."""


class ChatChunkChoice(_Choice):
    delta: Delta
    finish_reason: Literal["stop", "length"] | None
    """Only in the last event that has a choice."""


class CompletionChunkChoice(_Choice):
    text: str
    finish_reason: Literal["stop", "length"] | None
    """Only in the last event that has a choice."""


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
    """One event of a stream; the last is `[DONE]`, or an error if the answer broke off."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(max_length=1)
    """Empty in the event that counts the tokens."""
    usage: TokenUsage | None = None


class CompletionAnswer(_Head):
    object: Literal["text_completion"]
    choices: list[CompletionChoice] = Field(min_length=1, max_length=1)
    usage: TokenUsage


class CompletionChunk(_Head):
    """One event of a stream; the last is `[DONE]`, or an error if the answer broke off."""

    object: Literal["text_completion"]
    choices: list[CompletionChunkChoice] = Field(max_length=1)
    """Empty in the event that counts the tokens."""
    usage: TokenUsage | None = None


IGNORED = ("metadata", "store", "service_tier", "prompt_cache_key", "prompt_cache_retention", "parallel_tool_calls")
"""Fields that are accepted and change no answer."""
NEUTRAL: Mapping[str, object] = {
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
"""Fields that are accepted with their neutral value only."""
TEXT_NEUTRAL: Mapping[str, object] = {**NEUTRAL, "best_of": 1, "echo": False, "suffix": ""}
"""The same for `/v1/completions`."""
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
        """Return the content, its parts concatenated."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(_RequestModel):
    include_usage: StrictBool | None = None
    """Whether the last event, which has no choices, counts the tokens."""


class PromptRequest(_RequestModel):
    """The fields that chat and completion requests share."""

    model: StrictStr = CHAMPION
    """`champion`, or the name, version or `name@version` of the model that serves."""
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """OpenAI's newer name of `max_tokens`, which takes precedence."""
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """Most tokens of the answer; by default as many as in the evaluation."""
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    """0, the default, is greedy decoding, which was evaluated."""
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Above temperature 0, sample from the most likely tokens that have this probability together."""
    seed: StrictInt | None = None
    """The same seed samples the same tokens from the same probabilities."""
    stop: _Stop | Annotated[list[_Stop], Field(min_length=1, max_length=MAX_STOPS)] | None = None
    """Texts at which the answer ends; they are not part of it."""
    stream: StrictBool | None = None
    """Whether to stream the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """Only with `stream`."""
    safety_identifier: object = None
    """The person the request is about, by the caller's id; the request log keeps a keyed hash of a short text."""
    user: object = None
    """OpenAI's older name of `safety_identifier`."""

    @property
    def subject(self) -> str | None:
        """Return the person the request is about, if that is a text that can be logged."""
        subject = self.safety_identifier or self.user
        return subject if isinstance(subject, str) and len(subject) <= MAX_ATTRIBUTE_CHARS else None

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop texts as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Return the most tokens of the answer that the request sets."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens


PromptRequestT = TypeVar("PromptRequestT", bound=PromptRequest)


class ChatRequest(PromptRequest):
    messages: list[ChatMessage] = Field(min_length=1)
    """The conversation; the last message is the user's. A system message replaces the version's own."""

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """Return the messages as turns."""
        return tuple((message.role, message.text) for message in self.messages)


class CompletionRequest(PromptRequest):
    prompt: StrictStr | Annotated[list[StrictStr], Field(min_length=1, max_length=1)]
    """A text to continue without template, system message and examples; no verdict is about that."""

    @property
    def text(self) -> str:
        """Return the prompt as one text."""
        return self.prompt if isinstance(self.prompt, str) else self.prompt[0]


def parse_chat(body: bytes) -> ChatRequest:
    """Return the request in a body; raise RequestError 400, which names the field, for what is not supported."""
    request = _parse(ChatRequest, body, neutral=NEUTRAL)
    for index, message in enumerate(request.messages):
        for name, value in (message.model_extra or {}).items():
            if value and name != "name":
                raise _invalid_field(f"messages.{index}.{name}", "a message has a role and a content, and no more")
    if request.messages[-1].role != "user":
        raise _invalid_field("messages", f"the last must be the user's, not the {request.messages[-1].role}'s")
    return request


def parse_completion(body: bytes) -> CompletionRequest:
    """Return the request in a body, as `parse_chat`."""
    return _parse(CompletionRequest, body, neutral=TEXT_NEUTRAL)


def _parse(model: type[PromptRequestT], body: bytes, *, neutral: Mapping[str, object]) -> PromptRequestT:
    try:
        request = model.model_validate_json(body)
    except ValidationError as error:
        raise _invalid_request(error) from None
    for name, value in (request.model_extra or {}).items():
        if name in IGNORED or value is None or (name in neutral and value == neutral[name]):
            continue
        reason = f"only {json.dumps(neutral[name])} is taken" if name in neutral else "there is no such field here"
        raise _invalid_field(name, f"{reason}; leave it out")
    if request.stream_options is not None and not request.stream:
        raise _invalid_field("stream_options", "only with stream: true")
    return request


def _invalid_field(param: str, message: str) -> RequestError:
    return RequestError(400, "invalid_request", f"{param}: {message}", param=param)


def _invalid_request(error: ValidationError) -> RequestError:
    """Return an error that names the first fault's field and what is allowed, but not the value that was sent."""
    fault = error.errors(include_url=False, include_input=False)[0]
    if fault["type"] == "json_invalid":
        return RequestError(400, "invalid_json", f"the body is not JSON: {fault['ctx']['error']}")
    loc = fault["loc"]
    if loc[:1] == ("stop",):
        return _invalid_field("stop", _STOP)
    if loc[:1] == ("messages",) and loc[2:3] == ("content",) and fault["type"] != "missing":
        return _invalid_field(f"messages.{loc[1]}.content", _CONTENT)
    return _invalid_field(".".join(str(part) for part in loc) or "body", fault["msg"])
