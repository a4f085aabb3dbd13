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
_WORD = re.compile(r"[A-Za-z][A-Za-z_]{0,47}")
"""A code of words, without digits and hyphens, which keys have."""
_TOO_LARGE = re.compile(
    r"_above_max|too (large|high|many)|at most|(greater|less|more) than", re.IGNORECASE
)


@dataclass(frozen=True)
class EndpointFault:
    """The error of an endpoint."""

    type: str | None = None
    code: str | None = None  # `TOO_LONG` also for servers that state it in the message only
    parameters: tuple[str, ...] = ()
    """Of `PARAMETERS`, those that the error names, the field `param` first."""
    too_large: bool = False  # true if the error is about the size of a value

    def __str__(self) -> str:
        named = {"type": self.type, "code": self.code, "param": next(iter(self.parameters), None)}
        return ", ".join(f"{field} {value}" for field, value in named.items() if value is not None)


def parse_fault(content: bytes) -> EndpointFault:
    """Return the fault in the body of an error: an object `error`, as OpenAI's, or else a text or
    another object."""
    error = _error(content)
    text = error.get("message")
    if not isinstance(text, str):
        text = content.decode("utf-8", "replace")
    code = TOO_LONG if TOO_LONG_TEXT in text else _word(error.get("code"))
    # The field `param` can be a path such as `messages[0].content`.
    first = re.split(r"[.\[]", str(error.get("param")), maxsplit=1)[0]
    named = [name for name in PARAMETERS if name == first or _names(text, name)]
    return EndpointFault(
        type=_word(error.get("type")),
        code=code,
        parameters=tuple(sorted(named, key=lambda name: name != first)),
        too_large=_TOO_LARGE.search(f"{code} {text}") is not None,
    )


def _error(content: bytes) -> dict[str, JsonValue]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def _word(value: JsonValue) -> str | None:
    if isinstance(value, str) and _WORD.fullmatch(value):
        return value
    return None


def _names(text: str, name: str) -> bool:
    """Return whether a message names a parameter. `'temperature': 0` does not: it repeats the
    request."""
    named = rf"""^{name}\b(?!\s*[:=])|(['"`]){name}\\?\1(?!\s*:)"""
    if name in _NOT_WORDS:
        named += rf"""|\b{name}\b(?!\\?['"`]?\s*[:=])"""
    return re.search(named, text) is not None
