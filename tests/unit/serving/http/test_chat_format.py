"""Responses of chat models in OpenAI's format, with the version."""

from serving.engines.base_chat import LikelyToken, PartialAnswer, TokenLogprobs
from serving.http.chat_format import (
    OBJECT,
    Usage,
    answer_head,
    whole_response,
)
from serving.http.chat_schemas import ChatResponse


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
