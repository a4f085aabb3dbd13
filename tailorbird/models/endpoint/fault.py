"""What the error of an endpoint states, without its text: that can repeat the texts of a request
and API keys."""

import json
import re
from dataclasses import dataclass

from pydantic import JsonValue

TOO_LONG = "context_length_exceeded"  # OpenAI's error code
CONTENT_CODES = (
    "content_filter",
    "content_policy_violation",
    "invalid_prompt",
    "string_above_max_length",
)
"""Error codes of OpenAI and Azure for requests that are refused for their content."""
TOO_LONG_TEXT = "maximum context length"  # in the messages of servers without error codes
PARAMETERS = (
    *("max_tokens", "max_completion_tokens", "response_format", "logprobs", "temperature"),
    *("model", "messages", "stop", "seed", "top_p", "top_logprobs", "stream", "stream_options"),
)
"""Parameters that requests can have."""
_NOT_WORDS = frozenset(
    {"max_tokens", "max_completion_tokens", "response_format", "logprobs", "top_logprobs", "top_p"}
)
"""Parameters whose name is hardly part of a sentence or of a text, so it needs no quotes in a
message."""
_WORD = re.compile(
    r"[A-Za-z][A-Za-z_]{0,47}"
)  # a code of words, without digits and hyphens, which keys have
_TOO_LARGE = re.compile(
    r"_above_max|too (large|high|many)|at most|(greater|less|more) than", re.IGNORECASE
)


@dataclass(frozen=True)
class EndpointFault:
    """The error of an endpoint."""

    type: str | None = None
    code: str | None = None  # `TOO_LONG` also for servers that state it in the message only
    parameters: tuple[
        str, ...
    ] = ()  # of `PARAMETERS`, those that the error names, the field `param` first
    too_large: bool = False  # true if the error is about the size of a value

    def __str__(self) -> str:
        named = {"type": self.type, "code": self.code, "param": next(iter(self.parameters), None)}
        return ", ".join(f"{field} {value}" for field, value in named.items() if value is not None)


def parse_fault(content: bytes) -> EndpointFault:
    """Return the fault in the body of an error: an object `error`, as OpenAI's, or else a text or
    another object."""
    error = _error(content)
    message = error.get("message")
    if isinstance(message, str):
        text = message
    else:
        text = content.decode("utf-8", "replace")
    code = TOO_LONG if TOO_LONG_TEXT in text else _word(error.get("code"))
    names = [_parameter(error.get("param")), *(name for name in PARAMETERS if _names(text, name))]
    return EndpointFault(
        type=_word(error.get("type")),
        code=code,
        parameters=tuple(dict.fromkeys(name for name in names if name is not None)),
        too_large=_TOO_LARGE.search(f"{code} {text}") is not None,
    )


def _error(content: bytes) -> dict[str, JsonValue]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        return error
    return {}


def _word(value: JsonValue) -> str | None:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return None


def _parameter(value: JsonValue) -> str | None:
    """Return the parameter in a path such as `messages[0].content`."""
    if isinstance(value, str):
        name = re.split(r"[.\[]", value, maxsplit=1)[0]
    else:
        name = None
    if name in PARAMETERS:
        return name
    return None


def _names(text: str, name: str) -> bool:
    """Return whether a message names a parameter. `'temperature': 0` does not: it repeats the
    request."""
    named = rf"""^{name}\b(?!\s*[:=])|(['"`]){name}\\?\1(?!\s*:)"""
    if name in _NOT_WORDS:
        named += rf"""|\b{name}\b(?!\\?['"`]?\s*[:=])"""
    return re.search(named, text) is not None
