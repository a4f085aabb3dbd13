"""OpenAI's requests and responses for chat models: types, and validation of requests."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr
from pydantic.config import JsonDict

from serving.http.schemas import (
    CHAMPION,
    Faults,
    HttpModel,
    RequestError,
    invalid_field,
    parse_body,
)
from serving.request_log.attributes import LIMITS, Attributes
from tailorbird.config.formats.response_format import ResponseFormat
from tailorbird.registry.hybrid_routing import PartName


class TokenUsage(HttpModel):
    prompt_tokens: int
    """Tokens of the prompt, including the template, the system message and the examples. For a
    version of the kind `nearest`, tokens of the messages. For a version of an endpoint, the
    endpoint's count."""
    completion_tokens: int
    """Tokens of the answer."""
    total_tokens: int


class AssistantMessage(HttpModel):
    role: Literal["assistant"]
    content: str
    refusal: None
    """Part of OpenAI's format; always null."""


class Delta(HttpModel):
    """The text that an event appends to the message."""

    role: Literal["assistant"] | None = None
    """Set only in the first event."""
    content: str | None = None


class LikelyTokenLogprob(HttpModel):
    token: str
    logprob: float
    """Log-probability in nats among the tokens that the response format allows, before temperature
    and top_p."""
    bytes: list[int] | None
    """The token's bytes in UTF-8; null for a part of a character."""


class GeneratedTokenLogprob(LikelyTokenLogprob):
    top_logprobs: list[LikelyTokenLogprob]
    """The most likely tokens at this position; fewer if the response format allows fewer."""


class ChatLogprobs(HttpModel):
    content: list[GeneratedTokenLogprob]
    """The generated tokens, with the end-of-turn token and with tokens after the start of a stop
    text."""
    refusal: None
    """Part of OpenAI's format; always null."""


class _Choice(HttpModel):
    index: Literal[0]
    answered_by: PartName | None = None
    """(hybrids only) The part that answered; `first` is the cheap part. In a stream, the last event
    with a choice has it."""
    fallback: bool | None = None
    """(hybrids only) True if the other part should have answered, but failed; absent otherwise."""

    confidence: float | None = None
    """Only for an answer of the kind `nearest`: similarity of the training row whose answer is
    returned, 0 to 1."""
    reported_model: str | None = None
    """Only for an answer of an endpoint: the model that the endpoint reported."""


class ChatChoice(_Choice):
    message: AssistantMessage
    logprobs: ChatLogprobs | None
    """Only for requests with `logprobs: true`."""
    finish_reason: Literal["stop", "length", "content_filter"]
    """`length` if the answer reached `max_tokens`; `content_filter` if an endpoint withheld a part
    of it."""


class ChatChunkChoice(_Choice):
    delta: Delta
    logprobs: None
    """Part of OpenAI's format; always null."""
    finish_reason: Literal["stop", "length", "content_filter"] | None
    """Set only in the last event with a choice."""


class _Head(HttpModel):
    id: str
    """Random id of the answer, for feedback. The header `x-request-id` is a different id."""
    created: int
    """Unix time in seconds."""
    model: str
    version: str
    """The version that answered."""


class ChatResponse(_Head):
    object: Literal["chat.completion"]
    choices: list[ChatChoice] = Field(min_length=1, max_length=1)
    usage: TokenUsage


class ChatChunk(_Head):
    """An event of a stream. The last event is `[DONE]`, or an error if the generation failed."""

    object: Literal["chat.completion.chunk"]
    choices: list[ChatChunkChoice] = Field(max_length=1)
    """Empty in the event with the token counts."""
    usage: TokenUsage | None = None


MAX_STOPS = 4
# after each token of a stream, the end of the answer is compared with each start of a stop text
MAX_STOP_CHARS = 256
MAX_LIKELY = 20
# 36,000 empty messages or parts fit into 1 MB, and take 0.1 s of the event loop
MAX_MESSAGES = 1024
MAX_PARTS = 16
FAULTS: Faults = {
    r"(stop)\..*": f"must be a text or a list of 1 to {MAX_STOPS} texts, each with 1 to "
    f"{MAX_STOP_CHARS} characters",
    r"(messages\.\d+\.content)\..*": f"must be a text, or a list of at most {MAX_PARTS} parts "
    '{"type": "text", "text": ...}',
    r"(attributes)(\..*)?": f"must be an object; {LIMITS}",
    r"(response_format)\..*": None,
    r"(tools|tool_choice)(\..*)?": "tools are not supported; omit it",
    r"(messages\.\d+\.role)": "must be system, developer, user or assistant; tools are not "
    "supported",
}
_NO_EFFECT: JsonDict = {"x-no-effect": True}
_IGNORED = Field(description="Has no effect.", json_schema_extra=_NO_EFFECT)
_NEUTRAL = Field(
    description="Accepted only with this value, which has no effect.",
    json_schema_extra=_NO_EFFECT,
)

_Zero = Annotated[float, Field(ge=0, le=0, strict=True)]
_EmptyList = Annotated[list[object], Field(max_length=0)]
_EmptyObject = Annotated[dict[str, object], Field(max_length=0)]
_Stop = Annotated[StrictStr, Field(min_length=1, max_length=MAX_STOP_CHARS)]


class _RequestModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)


class TextPart(_RequestModel):
    type: Literal["text"]
    text: StrictStr


class _MessageModel(_RequestModel):
    """Base class of models whose unknown fields are refused by `parse_chat` unless they are
    empty."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})


class ChatMessage(_MessageModel):
    role: Literal["system", "developer", "user", "assistant"]
    """`developer` is OpenAI's newer name for `system`."""
    content: StrictStr | Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]
    # clients send the message of a response back as a turn of the conversation
    name: Annotated[object, _IGNORED] = None
    refusal: Annotated[None, _IGNORED] = None

    @property
    def text(self) -> str:
        """Return the content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class StreamOptions(_RequestModel):
    include_usage: StrictBool | None = None
    """If true, a last event without choices contains the token counts."""


class ChatRequest(_MessageModel):
    model: StrictStr = CHAMPION
    """`champion`, or the name, version or `name@version` of a served model."""
    max_completion_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """OpenAI's newer name for `max_tokens`. Takes precedence over it."""
    max_tokens: Annotated[StrictInt, Field(ge=1)] | None = None
    """Maximum number of tokens in the answer. The default is the limit used in the evaluation."""
    temperature: Annotated[float, Field(ge=0, le=2, strict=True)] | None = None
    """Sampling temperature. The default, 0, is greedy decoding, as in the evaluation."""
    top_p: Annotated[float, Field(gt=0, le=1, strict=True)] | None = None
    """Nucleus sampling: sample from the most likely tokens whose cumulative probability reaches
    this value. Has no effect at temperature 0."""
    seed: StrictInt | None = None
    """Seed for sampling. The same seed and the same probabilities give the same tokens."""
    stop: _Stop | Annotated[list[_Stop], Field(min_length=1, max_length=MAX_STOPS)] | None = None
    """Stop texts of at most 256 characters: the answer ends before the first of them."""
    stream: StrictBool | None = None
    """If true, stream the answer as server-sent events."""
    stream_options: StreamOptions | None = None
    """Options for streams. Only accepted with `stream: true`."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    """The conversation: at most 1,024 messages. The last message must have the role `user`. A
    system message replaces the version's own."""
    logprobs: StrictBool | None = None
    """If true, return the log-probability of each generated token. Not accepted with `stream:
    true`."""
    top_logprobs: Annotated[StrictInt, Field(ge=0, le=MAX_LIKELY)] | None = None
    """Number of most likely tokens that are returned at each position. Only accepted with
    `logprobs: true`."""

    response_format: ResponseFormat | None = None
    """Format of the answer: a JSON Schema, any JSON object, one of several texts (`choice`), or any
    text (`text`). The default is the recipe's `data.response_format`, as in the evaluation. A part
    of JSON Schema is supported; other schemas are refused. An answer that reaches `max_tokens` is
    incomplete, and has the finish reason `length`."""

    attributes: Attributes | None = None
    """Attributes of the conversation by name, such as the language. They are logged, so that
    `watch` can compare the groups of the recipe's `data.groups`. At most 32 and 2,048 bytes; names
    and values have at most 256 characters."""

    metadata: Annotated[object, _IGNORED] = None
    safety_identifier: Annotated[object, _IGNORED] = None
    user: Annotated[object, _IGNORED] = None
    store: Annotated[object, _IGNORED] = None
    service_tier: Annotated[object, _IGNORED] = None
    prompt_cache_key: Annotated[object, _IGNORED] = None
    prompt_cache_retention: Annotated[object, _IGNORED] = None
    parallel_tool_calls: Annotated[object, _IGNORED] = None
    reasoning_effort: Annotated[object, _IGNORED] = None
    verbosity: Annotated[object, _IGNORED] = None
    n: Annotated[Literal[1] | None, _NEUTRAL] = None
    presence_penalty: Annotated[_Zero | None, _NEUTRAL] = None
    frequency_penalty: Annotated[_Zero | None, _NEUTRAL] = None
    logit_bias: Annotated[_EmptyObject | None, _NEUTRAL] = None
    tools: Annotated[_EmptyList | None, _NEUTRAL] = None
    tool_choice: Annotated[Literal["none"] | None, _NEUTRAL] = None
    modalities: Annotated[tuple[Literal["text"]] | None, _NEUTRAL] = None

    @property
    def stops(self) -> tuple[str, ...]:
        """Return the stop texts as a tuple."""
        if isinstance(self.stop, str):
            return (self.stop,)
        return tuple(self.stop or ())

    @property
    def limit(self) -> int | None:
        """Return the requested maximum number of tokens in the answer."""
        if self.max_completion_tokens is None:
            return self.max_tokens
        return self.max_completion_tokens

    @property
    def conversation(self) -> tuple[tuple[str, str], ...]:
        """Return the messages as turns."""
        return tuple(
            ("system" if message.role == "developer" else message.role, message.text)
            for message in self.messages
        )

    @property
    def num_likely(self) -> int | None:
        """Return the number of most likely tokens whose log-probabilities are returned; None for
        none at all."""
        if self.logprobs:
            return self.top_logprobs or 0
        return None


def parse_chat(body: bytes) -> ChatRequest:
    """Return the request in a body.

    Raises RequestError 400, which names the field, if it is not supported, and 413 if it has too
    many values.
    """
    request = parse_body(ChatRequest, body, status=400, faults=FAULTS)
    for name, value in (request.model_extra or {}).items():
        if value is not None:
            raise _invalid_field(name, "unknown field; omit it")
    for index, message in enumerate(request.messages):
        for name, value in (message.model_extra or {}).items():
            if value:
                raise _invalid_field(
                    f"messages.{index}.{name}", "unknown field; a message has a role and a content"
                )
    if request.stream_options is not None and not request.stream:
        raise _invalid_field("stream_options", "only accepted with stream: true")
    if request.top_logprobs and not request.logprobs:
        raise _invalid_field("top_logprobs", "only accepted with logprobs: true")
    if request.logprobs and request.stream:
        raise _invalid_field("logprobs", "not accepted with stream: true; omit one of them")
    if request.messages[-1].role != "user":
        role = request.messages[-1].role
        raise _invalid_field(
            "messages", f"the last message has role {role!r}; it must have role 'user'"
        )
    return request


def _invalid_field(field: str, message: str) -> RequestError:
    return invalid_field(field, message, status=400)
