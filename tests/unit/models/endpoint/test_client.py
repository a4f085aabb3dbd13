"""Requests to a real server on the loopback interface: answers, retries, and each fault with its
message."""

import asyncio
import json
import pickle
import socket
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel, ValidationError

from tailorbird.models.endpoint import errors
from tailorbird.models.endpoint.client import (
    MAX_RETRY_AFTER_S,
    Body,
    RetryPolicy,
    complete,
    connect,
    read_key,
    retry_after_s,
)
from tailorbird.models.endpoint.completion import (
    EndpointAnswer,
    _Completion,
    _Event,
)
from tailorbird.models.endpoint.fault import parse_fault
from tailorbird.models.endpoint.prompts import chat_body
from tailorbird.registry.endpoint import Endpoint
from tests.endpoint_server import (
    MODEL,
    Answer,
    Reply,
    completion,
    endpoint_server,
    question,
    refusal,
)

QUICK = RetryPolicy(max_attempts=3, first_delay_s=0.01, max_delay_s=0.02)
BODY = chat_body((("user", "hello"),), model="m", max_tokens=8)


def ask(
    url: str, *bodies: Body, timeout_s: float = 20.0, retry: RetryPolicy = QUICK, **fields: Any
) -> list[EndpointAnswer]:
    """Send requests one after the other through the same connection."""

    async def send() -> list[EndpointAnswer]:
        endpoint = Endpoint(url=url, model="m", **fields)
        async with aclosing(
            connect(endpoint, timeout_s=timeout_s, max_connections=2, retry=retry)
        ) as connection:
            return [await complete(connection, body) for body in bodies or (BODY,)]

    return asyncio.run(send())


def faulty(message: str, **fields: str) -> Reply:
    return Reply(400, json.dumps({"error": {"message": message} | fields}).encode())


def failure(answer: Answer, **options: Any) -> tuple[errors.EndpointError, int]:
    """Return the error of a request, and the number of requests that the server received."""
    with endpoint_server(answer) as server, pytest.raises(errors.EndpointError) as raised:
        ask(server.url, **options)
    return raised.value, len(server.bodies)


def test_an_answer_has_its_tokens_and_log_probabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret\n")
    replies = [completion(" hello! ", logprobs=(-0.5, -1.5)), completion("yes", tokens=None)]
    surrogate = chat_body((("user", "a\ud800b"),), model="m", max_tokens=8)
    with endpoint_server(lambda _, number: replies[number]) as server:
        answer, unknown = ask(server.url, BODY, surrogate, api_key="env://THE_KEY")
    assert answer == EndpointAnswer("hello!", "stop", 10, 2, MODEL, (-0.5, -1.5))
    assert answer.confidence == pytest.approx(0.3679, abs=1e-4)
    assert answer.probability == pytest.approx(0.1353, abs=1e-4)
    assert (unknown.input_tokens, unknown.output_tokens, unknown.confidence) == (None, None, None)
    assert server.bodies == [BODY, surrogate]
    assert server.authorizations == ["Bearer sk-secret"] * 2


@pytest.mark.parametrize("key", [None, "", " \n", "k\u00e9y", "a\nb"])
def test_a_key_that_is_not_in_the_environment_is_named_and_nothing_is_sent(
    monkeypatch: pytest.MonkeyPatch, key: str | None
) -> None:
    monkeypatch.delenv("THE_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("THE_KEY", key)
    with endpoint_server(lambda *_: completion("yes")) as server:
        with pytest.raises(errors.EndpointKeyMissing) as raised:
            ask(server.url, api_key="env://THE_KEY")
        assert not key or not key.strip() or key not in str(raised.value)
    assert server.bodies == []
    assert read_key(Endpoint(url="https://host", model="m")) is None


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refusal(429, "quota", Retry_After="0"), errors.EndpointRateLimited),
        (refusal(500, ""), errors.EndpointUnreachable),
        (refusal(408, ""), errors.EndpointUnreachable),
        (Reply(waits=True), errors.EndpointTimeout),
    ],
)
def test_a_request_is_sent_again_after_a_fault_that_can_end(reply: Reply, error: type) -> None:
    raised, number = failure(lambda *_: reply, timeout_s=0.2)
    assert number == 3
    assert "attempts: 3" in str(raised)
    assert type(pickle.loads(pickle.dumps(raised))) is error  # as a Ray task raises it
    with endpoint_server(lambda _, number: completion("yes") if number == 2 else reply) as server:
        [answer] = ask(server.url, timeout_s=0.2)
    assert (answer.text, len(server.bodies)) == ("yes", 3)


def test_a_server_that_is_down_is_named() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        with pytest.raises(errors.EndpointUnreachable):
            ask(url)


def test_a_connection_that_is_not_accepted_in_time_has_its_own_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def refuse(*_: object) -> None:
        raise httpx2.ConnectTimeout("late")

    monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", refuse)
    with pytest.raises(errors.EndpointConnectTimeout):
        ask("http://127.0.0.1:1/v1")


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (refusal(401, "wrong key sk-secret"), errors.EndpointKeyRefused),
        (refusal(404, "no model m"), errors.EndpointRefused),
        (Reply(400, b"[" * 100_000), errors.EndpointRefused),
        (Reply(302, headers={"Location": "https://other/v1"}), errors.EndpointRefused),
        (Reply(content=b"<html>"), errors.EndpointAnswerInvalid),
        (Reply(content=b'{"choices": [{"message": {}}]}'), errors.EndpointAnswerInvalid),
        (completion("yes", model="m" * 257), errors.EndpointAnswerInvalid),
        (Reply(204), errors.EndpointAnswerInvalid),
        # Too long with any parameters.
        (faulty("max_tokens is too large: 8", param="max_tokens"), errors.EndpointRefused),
        (faulty("maximum context length is 4; lower `max_tokens`"), errors.EndpointRefused),
        (
            faulty("shorten it", param="max_tokens", code="context_length_exceeded"),
            errors.EndpointRefused,
        ),
    ],
)
def test_a_refusal_or_a_nonsense_answer_ends_at_once(reply: Reply, error: type) -> None:
    raised, number = failure(lambda *_: reply)
    assert (type(raised), number) == (error, 1)
    assert "sk-secret" not in str(raised)


@pytest.mark.parametrize("status", [400, 503])
def test_an_error_keeps_the_codes_of_the_endpoint_and_neither_texts_nor_keys(
    monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setenv("THE_KEY", "sk-secret")
    reply = faulty(
        "cannot read 'hello' with the key sk-secret",
        type="invalid_request_error",
        code="sk-secret",
        param="messages[0].content",
        input="hello",
    )
    reply = replace(reply, status=status)
    once = RetryPolicy(max_attempts=1)
    raised, _ = failure(lambda *_: reply, api_key="env://THE_KEY", retry=once)
    assert f"({status}: type invalid_request_error, param messages)" in str(raised)
    assert not any(text in f"{raised} {vars(raised)}" for text in ("hello", "secret"))


@pytest.mark.parametrize(
    ("reply", "parameters"),
    [
        (faulty("no", param="temperature"), ("temperature",)),
        (
            faulty("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."),
            ("max_tokens", "max_completion_tokens"),
        ),
        (faulty("the text 'a temperature of 39' is refused"), ()),
        (faulty("cannot read {'temperature': 0, 'logprobs': True, 'max_tokens': 8}"), ()),
        (faulty("max_tokens=5000 exceeds the limit"), ()),
    ],
)
def test_a_parameter_is_refused_if_an_error_names_it_and_not_if_it_repeats_the_request(
    reply: Reply, parameters: tuple[str, ...]
) -> None:
    assert parse_fault(reply.content).parameters == parameters


def test_an_answer_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tailorbird.models.endpoint.client.MAX_ANSWER_BYTES", 1000)
    raised, _ = failure(lambda *_: completion("a" * 2000))
    assert "more than 1,000 bytes" in str(raised)


def test_a_refused_parameter_is_left_out_or_renamed_and_later_after_an_answer_without_it_only() -> (
    None
):
    def answer(body: dict[str, Any], _: int) -> Reply:
        if question(body) == "bad":
            return refusal(400, "'temperature' or the text is wrong")
        named = next((name for name in ("max_tokens", "logprobs") if name in body), None)
        return refusal(400, f"Unsupported parameter: '{named}'") if named else completion("yes")

    async def send(url: str) -> EndpointAnswer:
        endpoint = Endpoint(url=url, model="m")
        async with aclosing(
            connect(endpoint, timeout_s=20, max_connections=1, retry=QUICK)
        ) as connection:
            with pytest.raises(errors.EndpointRefused):
                await complete(connection, chat_body((("user", "bad"),), model="m", max_tokens=8))
            await complete(connection, BODY)
            return await complete(connection, BODY)

    with endpoint_server(answer) as server:
        later = asyncio.run(send(server.url))
    adapted = {"model": "m", "messages": BODY["messages"], "max_completion_tokens": 8}
    assert server.bodies[-2:] == [adapted | {"temperature": 0}] * 2
    assert (later.omitted, len(server.bodies)) == (("logprobs",), 6)


@pytest.mark.parametrize(("url", "uses"), [("http://host/v1", False), ("https://host/v1", True)])
def test_a_proxy_of_the_environment_is_used_with_https_only(url: str, uses: bool) -> None:
    connection = connect(Endpoint(url=url, model="m"), timeout_s=1, max_connections=1)
    assert connection.client.trust_env is uses


def test_the_delay_doubles_and_is_that_of_the_endpoint_unless_a_client_waits_too_long() -> None:
    policy = RetryPolicy(max_attempts=10, first_delay_s=1.0, max_delay_s=8.0)
    waiting = replace(policy, client_waits=True)
    failed = errors.EndpointUnreachable()
    for attempt, longest in ((1, 1.0), (2, 2.0), (9, 8.0)):
        assert longest / 2 <= (policy.delay_s(failed, attempt=attempt) or 0) <= longest
    assert policy.delay_s(failed, attempt=10) is None
    assert waiting.delay_s(errors.EndpointTimeout(), attempt=1) is None
    for value, delay_s, waiting_s in (("8", 8.0, 8.0), ("9", 8.0, None)):
        failed.retry_after_s = retry_after_s(value)
        assert policy.delay_s(failed, attempt=1) == delay_s
        assert waiting.delay_s(failed, attempt=1) == waiting_s
    assert {retry_after_s(value) for value in (None, "soon", "-1")} == {None}
    assert retry_after_s("9" * 400) == MAX_RETRY_AFTER_S


@pytest.mark.parametrize("answer", [_Completion, _Event])
def test_the_first_invalid_choice_of_an_answer_ends_its_validation(answer: type[BaseModel]) -> None:
    with pytest.raises(ValidationError) as caught:
        answer.model_validate_json(json.dumps({"model": "m", "choices": [1] * 1000}))
    assert caught.value.error_count() == 1


@pytest.mark.parametrize(
    "name",
    [
        "AWS_SECRET_ACCESS_KEY",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN",
        "RAY_AUTH_TOKEN",
        "TAILORBIRD_API_KEY",
    ],
)
def test_a_version_cannot_send_secrets_of_other_services(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "the secret")
    with pytest.raises(errors.EndpointKeyMissing) as refused:
        read_key(Endpoint(url="http://127.0.0.1:1/v1", model="m", api_key=f"env://{name}"))
    assert "the secret" not in str(refused.value)
