"""Responses of chat models in OpenAI's format, with the version."""

import json

from serving.engines.base_chat import LikelyToken, PartialAnswer, TokenLogprobs
from serving.http.chat_format import (
    LAST_EVENT,
    OBJECT,
    STREAM_OBJECT,
    Usage,
    answer_head,
    text_event,
    usage_event,
    whole_response,
)
from serving.http.chat_schemas import ChatResponse

HEAD = answer_head(STREAM_OBJECT, request_id="r", model="m", version="v")


def test_a_chat_response_has_openais_fields_and_the_version() -> None:
    head = answer_head(OBJECT, request_id="r", model="m", version="v")._replace(created=5)
    answer = json.loads(whole_response(head, PartialAnswer("é", 4, "stop"), usage=Usage(3, 4)))
    assert {name: answer[name] for name in ("id", "object", "created", "model", "version")} == {
        "id": "chatcmpl-r",
        "object": "chat.completion",
        "created": 5,
        "model": "m",
        "version": "v",
    }
    message = answer["choices"][0].pop("message")
    assert (message["role"], message["content"]) == ("assistant", "é")
    assert answer["choices"] == [{"index": 0, "logprobs": None, "finish_reason": "stop"}]
    assert answer["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}


def test_an_event_is_one_line_of_data_for_any_text() -> None:
    event = text_event(HEAD, text="a\n\nb\r")
    assert event.startswith(b"data: ")
    assert event.endswith(b"\n\n")
    assert b"\n" not in event[:-2]
    assert b"\r" not in event
    assert json.loads(event[6:])["choices"][0]["delta"] == {"content": "a\n\nb\r"}


def test_the_usage_event_has_no_choices_and_the_last_event_is_done() -> None:
    counted = json.loads(usage_event(HEAD, usage=Usage(1, 2))[6:])
    assert (counted["choices"], counted["usage"]["total_tokens"]) == ([], 3)
    assert LAST_EVENT == b"data: [DONE]\n\n"


def test_log_probabilities_have_openais_fields() -> None:
    head = answer_head(OBJECT, request_id="r", model="m", version="v")._replace(created=5)
    part = "\N{REPLACEMENT CHARACTER}"
    logprobs = (
        TokenLogprobs(LikelyToken("é", -0.5), (LikelyToken("é", -0.5), LikelyToken(part, -2.0))),
    )
    answer = PartialAnswer("é", 1, "stop", logprobs=logprobs)
    response = ChatResponse.model_validate_json(whole_response(head, answer, usage=Usage(3, 1)))
    assert response.choices[0].logprobs is not None
    (entry,) = response.choices[0].logprobs.content
    assert (entry.token, entry.logprob, entry.bytes) == ("é", -0.5, [0xC3, 0xA9])
    assert [(token.token, token.logprob, token.bytes) for token in entry.top_logprobs] == [
        ("é", -0.5, [0xC3, 0xA9]),
        (part, -2.0, None),
    ]
