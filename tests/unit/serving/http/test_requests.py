"""Validation of requests, and the form of errors and answers, also in OpenAI's format."""

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from serving.engines.base_chat import LikelyToken, PartialAnswer, TokenLogprobs
from serving.http.chat_format import (
    OBJECT,
    Usage,
    answer_head,
    whole_response,
)
from serving.http.chat_schemas import ChatRequest, ChatResponse, parse_chat
from serving.http.schemas import (
    MAX_VALUES,
    SCORES_AT_ONCE,
    ClassifyRequest,
    ClassifyResponse,
    FeedbackRequest,
    RequestError,
    parse_body,
    parse_request,
    write_answer,
)
from serving.request_log.attributes import MAX_ATTRIBUTES

ID = "2c9a7f40d1e84b5b9f36a0c7e5128d34"
USER = {"role": "user", "content": "Fear of flying"}
PART = {"type": "text", "text": "a"}
LARGE_ATTRIBUTES = {str(number): "é" * 128 for number in range(8)}


def classify(body: object, *, max_texts: int = 4) -> ClassifyRequest:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(content, max_texts=max_texts, max_text_bytes=100)


def chat(**fields: Any) -> ChatRequest:
    return parse_chat(json.dumps({"messages": [USER]} | fields).encode())


def with_schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b'{"input": "a"', b"\xff\xfe", b'{"input": "\\ud800"}'),
        b'{"input": ' + 5000 * b"[" + 5000 * b"]" + b"}",
        b'{"input": ' + 100_000 * b"9" + b"}",
    ],
    ids=lambda body: body[:20],
)
def test_a_body_that_is_not_json_is_a_400(body: bytes) -> None:
    for parse in (classify, parse_chat):
        with pytest.raises(RequestError) as caught:
            parse(body)
        assert (caught.value.status, caught.value.type) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ([], "body"),
        ({"input": {"patient": "Jane Doe"}}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": []}, "input"),
        ({"input": ["a" * 100, "é" * 51]}, "input"),
        ({"input": "a", "scores": "yes"}, "scores"),
        ({"input": "a", "modle": "x"}, "modle"),
        ({"input": "a", "attributes": {"sex": ["Jane"]}}, "attributes"),
        ({"input": "a", "attributes": dict.fromkeys(map(str, range(33)), "")}, "attributes"),
        ({"input": "a", "attributes": [{"Jane" + "a" * 256: "f"}]}, "attributes"),
        ({"input": "a", "attributes": LARGE_ATTRIBUTES}, "attributes"),
        ({"input": ["a", "b"], "attributes": [{"sex": "f"}]}, "attributes"),
    ],
)
def test_an_invalid_field_of_a_text_is_a_422_that_names_it_without_its_value(
    body: object, field: str
) -> None:
    with pytest.raises(RequestError) as caught:
        classify(body)
    error = json.loads(caught.value.body)["error"]
    assert (caught.value.status, error["type"], error["param"]) == (422, "invalid_request", field)
    assert error["message"].startswith(f"{field}: ")
    assert "Jane" not in error["message"]


def test_the_first_fault_of_a_list_ends_its_validation() -> None:
    many = [1] * 1000
    contents = [{"role": "user", "content": [1] * 16}] * 1000
    models: list[tuple[type[BaseModel], dict[str, Any]]] = [
        (ClassifyRequest, {"input": many}),
        (ClassifyRequest, {"input": "a", "attributes": many}),
        (ChatRequest, {"messages": contents}),
    ]
    for model, body in models:
        with pytest.raises(ValidationError) as caught:
            model.model_validate_json(json.dumps(body))
        assert caught.value.error_count() <= 3  # one for each type of the union


def test_a_body_with_too_many_values_is_not_validated(monkeypatch: pytest.MonkeyPatch) -> None:
    attributes = [{str(name): "" for name in range(MAX_ATTRIBUTES)}] * 2000
    body = {"input": ["a"] * 2000, "attributes": attributes, "scores": True}
    assert len(classify(body, max_texts=2000).texts) == 2000
    monkeypatch.setattr(ClassifyRequest, "model_validate_json", None)
    with pytest.raises(RequestError) as caught:
        classify({"input": [{}] * MAX_VALUES}, max_texts=256)
    assert (caught.value.status, caught.value.type) == (413, "body_too_large")


FIELDS = {"request_id": "r", "model": "m", "version": "v"}


def test_other_requests_run_while_a_valid_answer_with_many_scores_is_written() -> None:
    scores = dict.fromkeys(map(str, range(1000)), 0.5)
    result = {"label": "é", "score": 0.5, "scores": scores, "answered_by": "second"}
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def write() -> bytes:
        running = asyncio.create_task(count())
        try:
            return await write_answer(FIELDS, results=[result] * 20)
        finally:
            running.cancel()

    written = asyncio.run(write())
    assert json.loads(written) == FIELDS | {"results": [result] * 20}
    assert ClassifyResponse.model_validate_json(written).results[0].answered_by == "second"
    assert turns >= 20 * 1000 // (SCORES_AT_ONCE + 1000)


@pytest.mark.parametrize(
    ("task", "fields", "is_valid"),
    [
        ("classification", {"label": "b", "row": 255}, True),
        ("classification", {"request_id": f"chatcmpl-{ID}", "label": -7}, True),
        ("classification", {"label": True}, False),
        ("classification", {"label": "b", "row": 1 << 31}, False),
        ("classification", {"request_id": f"{ID}a", "label": "b"}, False),
        ("classification", {}, False),
        ("classification", {"label": "b", "score": 1.0}, False),
        ("chat", {"label": "bad", "correct_answer": "4"}, True),
        ("chat", {"score": 0.5, "correct_answer": "4"}, True),
        ("chat", {"label": "good", "score": 1.0}, False),
        ("chat", {"label": "4"}, False),
        ("chat", {}, False),
    ],
)
def test_feedback_has_a_label_or_for_chat_a_score_or_an_answer(
    task: Any, fields: Any, is_valid: bool
) -> None:
    def parse() -> FeedbackRequest:
        feedback = parse_body(FeedbackRequest, json.dumps({"request_id": ID} | fields).encode())
        feedback.require_fields_of(task)
        return feedback

    if is_valid:
        assert parse().bare_id == ID
        return
    with pytest.raises(RequestError) as caught:
        parse()
    assert caught.value.status == 422


def test_the_fields_of_a_chat_request_have_openais_defaults_and_names() -> None:
    nothing = dict.fromkeys(("temperature", "top_p", "stop", "stream", "seed", "max_tokens"))
    for request in (chat(), chat(**nothing, stream_options=None)):
        assert (request.model, request.conversation) == ("champion", (("user", "Fear of flying"),))
        assert not request.stream
        assert (request.stops, request.limit, request.seed) == ((), None, None)
    assert chat(stop="\n").stops == ("\n",)
    assert chat(stop=["a", "b"]).stops == ("a", "b")
    assert chat(max_tokens=5, max_completion_tokens=6).limit == 6
    parts = [{"type": "text", "text": "Fear "}, {"type": "text", "text": "of flying"}]
    assert chat(messages=[{"role": "user", "content": parts}]).conversation == chat().conversation
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    response_format: Any = chat(response_format=with_schema(schema)).response_format
    assert response_format.json_schema.content == schema
    answer: dict[str, Any] = {"role": "assistant", "content": "F40", "refusal": None}
    turns = [answer | {"annotations": [], "tool_calls": None}, USER | {"name": "Ann"}]
    assert [role for role, _ in chat(messages=turns).conversation] == ["assistant", "user"]
    instructions = {"role": "developer", "content": "Code in ICD-10-CM."}
    assert chat(messages=[instructions, USER]).conversation[0] == ("system", "Code in ICD-10-CM.")
    chat(metadata={"a": "b"}, store=False, n=1, presence_penalty=0, frequency_penalty=0.0)
    chat(tools=[], tool_choice="none", logit_bias={}, modalities=["text"], reasoning_effort="low")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": [USER] * 1025}, "messages"),
        ({"messages": [{"role": "user", "content": [PART] * 17}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"Jane": 1}]}]}, "messages.0.content"),
        ({"messages": [USER, {"role": "assistant", "content": "x"}]}, "messages"),
        ({"messages": [USER | {"tool_calls": [{}]}]}, "messages.0.tool_calls"),
        ({"messages": [{"role": "tool", "content": "3"}, USER]}, "messages.0.role"),
        ({"temperature": float("nan")}, "temperature"),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"attributes": {"Jane": 3}}, "attributes"),
        ({"stop": ["a", "b" * 257]}, "stop"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "stream": True}, "logprobs"),
        ({"n": 2}, "n"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": with_schema({"multipleOf": 2})}, "response_format"),
        ({"temprature": 1}, "temprature"),
    ],
)
def test_an_unsupported_field_of_a_chat_is_a_400_that_names_it_without_its_value(
    fields: Any, param: str
) -> None:
    with pytest.raises(RequestError) as caught:
        chat(**fields)
    error = caught.value
    assert (error.status, error.type, error.param) == (400, "invalid_request", param)
    assert error.message.startswith(f"{param}: ")
    assert "Jane" not in error.message


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
