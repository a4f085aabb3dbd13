"""Format a chat model's answers as OpenAI responses with `version`, complete or as server-sent
events."""

import json
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from serving.engines.stop_sequences import REPLACEMENT_CHARACTER
from serving.http.schemas import CHAT_ID

if TYPE_CHECKING:
    from serving.engines.base_chat import LikelyToken, PartialAnswer, TokenLogprobs

ROUTE = "chat"  # name of the route in metrics and the request log
# `object` of a response, and of an event
OBJECT = "chat.completion"
STREAM_OBJECT = "chat.completion.chunk"


class Usage(NamedTuple):
    """Token counts of a prompt and its answer."""

    prompt_tokens: int
    completion_tokens: int


class AnswerHead(NamedTuple):
    """The first fields of a response and of each event of a stream."""

    id: str
    object: str
    created: int
    model: str
    version: str


def answer_head(object: str, *, request_id: str, model: str, version: str) -> AnswerHead:
    """Return the head of a response of this moment; `object` is `OBJECT` or, for a stream,
    `STREAM_OBJECT`."""
    return AnswerHead(
        id=f"{CHAT_ID}{request_id}",
        object=object,
        created=int(time.time()),
        model=model,
        version=version,
    )


def whole_response(head: AnswerHead, answer: "PartialAnswer", *, usage: Usage) -> bytes:
    """Return a complete response."""
    message = {"role": "assistant", "content": answer.text, "refusal": None}
    choice = _choice({"message": message}, answer)
    if answer.logprobs is not None:
        choice["logprobs"] = {
            "content": [_token(entry) for entry in answer.logprobs],
            "refusal": None,
        }
    return _json(head, choices=[choice], usage=usage)


def first_event(head: AnswerHead) -> bytes:
    """Return the event before the first token."""
    return _event(head, {"delta": {"role": "assistant", "content": ""}})


def text_event(head: AnswerHead, *, text: str) -> bytes:
    """Return the event that appends a text."""
    return _event(head, {"delta": {"content": text}})


def last_event(head: AnswerHead, answer: "PartialAnswer") -> bytes:
    """Return the event after the last token."""
    return _event(head, {"delta": {}}, answer)


def usage_event(head: AnswerHead, *, usage: Usage) -> bytes:
    """Return the event with the token counts."""
    return event(_json(head, choices=[], usage=usage))


def event(data: bytes) -> bytes:
    """Return a server-sent event."""
    return b"data: " + data + b"\n\n"


LAST_EVENT = event(b"[DONE]")


def _event(
    head: AnswerHead, content: Mapping[str, object], answer: "PartialAnswer | None" = None
) -> bytes:
    return event(_json(head, choices=[_choice(content, answer)]))


def _choice(content: Mapping[str, object], answer: "PartialAnswer | None") -> dict[str, object]:
    """Return the choice with a content; `answer` is the complete answer, or None before its end."""
    choice = {
        "index": 0,
        **content,
        "logprobs": None,
        "finish_reason": answer and answer.finish_reason,
    }
    if answer is not None and answer.confidence is not None:
        choice["confidence"] = answer.confidence
    if answer is not None and answer.reported_model is not None:
        choice["reported_model"] = answer.reported_model
    if answer is not None and answer.answered_by is not None:
        choice["answered_by"] = answer.answered_by
        choice |= {"fallback": True} if answer.is_fallback else {}
    return choice


def _token(entry: "TokenLogprobs") -> dict[str, object]:
    return _likely(entry.generated) | {
        "top_logprobs": [_likely(token) for token in entry.most_likely]
    }


def _likely(token: "LikelyToken") -> dict[str, object]:
    is_part = REPLACEMENT_CHARACTER in token.token  # the decoder's text of a part of a character
    return token._asdict() | {"bytes": None if is_part else list(token.token.encode())}


def _json(
    head: AnswerHead, *, choices: list[dict[str, object]], usage: Usage | None = None
) -> bytes:
    fields = head._asdict() | {"choices": choices}
    if usage is not None:
        fields["usage"] = usage._asdict() | {"total_tokens": sum(usage)}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
