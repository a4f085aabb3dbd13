"""Validation of chat and completion requests."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from serving.http.chat_schemas import ChatRequest, parse_chat
from serving.http.schemas import RequestError

MESSAGES = [{"role": "user", "content": "Fear of flying"}]
PART = {"type": "text", "text": "a"}


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


def parse(**fields: Any) -> Any:
    return parse_chat(json.dumps({"messages": MESSAGES} | fields).encode())


def test_omitted_and_null_fields_have_their_defaults() -> None:
    for request in (
        parse(),
        parse(
            temperature=None,
            top_p=None,
            stop=None,
            stream=None,
            seed=None,
            max_tokens=None,
            stream_options=None,
        ),
    ):
        assert (request.model, request.conversation) == ("champion", (("user", "Fear of flying"),))
        assert not request.stream
        assert (request.stops, request.limit, request.seed, request.temperature) == (
            (),
            None,
            None,
            None,
        )


def test_a_response_format_is_a_schema_a_json_object_or_a_choice() -> None:
    schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
    assert (
        parse(response_format=schema_format(schema)).response_format.json_schema.content == schema
    )
    assert parse(response_format={"type": "json_object"}).response_format.type == "json_object"
    assert parse(
        response_format={"type": "choice", "choice": ["yes", "no"]}
    ).response_format.choice == ("yes", "no")
    assert parse(response_format={"type": "text"}).response_format.type == "text"
    assert parse().response_format is None


def test_a_content_can_be_a_list_of_text_parts() -> None:
    parts = [{"type": "text", "text": "Fear "}, {"type": "text", "text": "of flying"}]
    assert parse(messages=[{"role": "user", "content": parts}]).conversation == (
        ("user", "Fear of flying"),
    )


def test_a_message_from_openai_is_accepted_as_a_turn() -> None:
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "F40.243",
        "refusal": None,
        "tool_calls": None,
        "annotations": [],
    }
    turns = [
        {"role": "system", "content": "Code."},
        *MESSAGES,
        answer,
        {"role": "user", "name": "Ann", "content": "Sure?"},
    ]
    assert [role for role, _ in parse(messages=turns).conversation] == [
        "system",
        "user",
        "assistant",
        "user",
    ]


def test_stop_is_a_text_or_a_list_of_texts() -> None:
    assert parse(stop="\n").stops == ("\n",)
    assert parse(stop=["a", "b"]).stops == ("a", "b")


def test_max_completion_tokens_takes_precedence_over_max_tokens() -> None:
    assert parse(max_tokens=5).limit == 5
    assert parse(max_tokens=5, max_completion_tokens=6).limit == 6


def test_fields_without_effect_are_accepted() -> None:
    parse(
        user="u",
        metadata={"a": "b"},
        store=False,
        n=1,
        presence_penalty=0,
        frequency_penalty=0.0,
        logprobs=False,
    )
    parse(
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        logit_bias={},
        reasoning_effort=None,
    )


@pytest.mark.parametrize(
    ("fields", "param", "expected"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": MESSAGES * 1025}, "messages", "at most 1024 items"),
        (
            {"messages": [{"role": "user", "content": [PART] * 17}]},
            "messages.0.content",
            "at most 16 parts",
        ),
        ({"messages": "hello"}, "messages", "valid array"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "required"),
        (
            {"messages": [{"role": "user", "content": None}]},
            "messages.0.content",
            "a text, or a list of at most 16 parts",
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "Jane Doe"}}],
                    }
                ]
            },
            "messages.0.content",
            "a text, or a list of at most 16 parts",
        ),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "messages.0.role",
            "'system', 'user' or 'assistant'",
        ),
        (
            {"messages": [{"role": "assistant", "content": "x"}]},
            "messages",
            "it must have role 'user'",
        ),
        (
            {"messages": [*MESSAGES, {"role": "system", "content": "x"}]},
            "messages",
            "has role 'system'",
        ),
        (
            {"messages": [{"role": "user", "content": "x", "tool_calls": [{}]}]},
            "messages.0.tool_calls",
            "a role and a content",
        ),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "warm"}, "temperature", "valid number"),
        ({"temperature": float("nan")}, "temperature", ""),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": "8"}, "max_tokens", "valid integer"),
        (
            {"attributes": [{"a": "b"}]},
            "attributes",
            "must be an object; an object has at most 32 attributes",
        ),
        ({"attributes": {"secret": 3}}, "attributes", "must be an object"),
        (
            {"attributes": {str(number): "v" for number in range(33)}},
            "attributes",
            "at most 32 attributes",
        ),
        (
            {"attributes": {str(number): "v" * 256 for number in range(8)}},
            "attributes",
            "together 2048 bytes",
        ),
        ({"stop": []}, "stop", "1 to 4 texts"),
        ({"stop": ["a"] * 5}, "stop", "1 to 4 texts"),
        ({"stop": ""}, "stop", "each with 1 to 256 characters"),
        ({"stop": ["a", "b" * 257]}, "stop", "each with 1 to 256 characters"),
        ({"stop": 3}, "stop", "a text or a list"),
        ({"seed": "x"}, "seed", "valid integer"),
        ({"stream": "yes"}, "stream", "valid boolean"),
        (
            {"stream_options": {"include_usage": True}},
            "stream_options",
            "only accepted with stream: true",
        ),
        ({"n": 2}, "n", "only 1 is accepted"),
        ({"presence_penalty": 0.5}, "presence_penalty", "only 0 is accepted"),
        ({"response_format": {"type": "grammar"}}, "response_format", "'json_object'"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "Field required"),
        (
            {"response_format": schema_format({"type": "person"})},
            "response_format",
            "/type: 'person' is not one of",
        ),
        (
            {"response_format": schema_format({"multipleOf": 2})},
            "response_format",
            "'multipleOf' is not supported",
        ),
        (
            {"response_format": {"type": "choice", "choice": ["yes"]}},
            "response_format",
            "at least 2 items",
        ),
        ({"tools": [{"type": "function"}]}, "tools", "only [] is accepted"),
        ({"temprature": 1}, "temprature", "unknown field"),
    ],
)
def test_an_unsupported_request_is_a_400_that_names_the_field(
    fields: Any, param: str, expected: str
) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    error = caught.value
    assert (error.status, error.type, error.param) == (400, "invalid_request", param)
    assert error.message.startswith(f"{param}: ")
    assert expected in error.message
    assert "Jane" not in error.message


@pytest.mark.parametrize("messages", [[1] * 1000, [{"role": "user", "content": [1] * 16}] * 1000])
def test_the_first_invalid_message_or_part_ends_the_validation(messages: list[object]) -> None:
    with pytest.raises(ValidationError) as caught:
        ChatRequest.model_validate_json(json.dumps({"messages": messages}))
    assert caught.value.error_count() <= 2  # one for each type of a content


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe"])
def test_a_body_that_is_not_json_is_a_400(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_chat(body)
    assert (caught.value.status, caught.value.type) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("fields", "subject"),
    [
        ({}, None),
        ({"user": "u"}, "u"),
        ({"user": "u", "safety_identifier": "s"}, "s"),
        ({"user": 7}, None),
        ({"safety_identifier": "s" * 257}, None),
    ],
)
def test_a_subject_that_cannot_be_logged_is_ignored(
    fields: dict[str, Any], subject: str | None
) -> None:
    assert parse(**fields).subject == subject
