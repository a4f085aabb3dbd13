"""Answers of an endpoint through the chat routes, with a real server on the loopback interface."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from serving.endpoint.chat_engine import EndpointChatEngine
from serving.http.metrics import (
    ENDPOINT_REQUESTS,
    ENDPOINT_SPEND,
    ENDPOINT_TOKENS,
    OTHER_MODEL,
    Meter,
)
from serving.http.schemas import RequestError
from serving.replica.generation import whole_answer
from tailorbird.config.formats.response_format import JsonObjectFormat
from tailorbird.models.endpoint import client as endpoint_client
from tests.endpoint_server import (
    Reply,
    Server,
    completion,
    endpoint_server,
    event,
    last_events,
    refusal,
    stream,
)
from tests.unit.serving.endpoint.clients import chat, client_of, engine_of
from tests.unit.serving.endpoint.versions import KEY, VARIABLE
from tests.unit.serving.replica.fake_engine import generation_of

LABELS = ("task", "endpoint-few-shot-0")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def ask(
    *replies: Reply,
    requests: Sequence[dict[str, Any]] = ({},),
    meter: Meter | None = None,
    **fields: Any,
) -> tuple[list[Any], Server]:
    """Return the responses to chat requests, and the server of the endpoint.

    The last of the endpoint's replies is repeated. `fields` are those of `engine_of`.
    """
    with (
        endpoint_server(lambda _, number: replies[min(number, len(replies) - 1)]) as server,
        client_of(engine_of(server, meter=meter, **fields)) as client,
    ):
        return [chat(client, **request) for request in requests], server


def events_of(response: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def counts(meter: Meter, metric: Any) -> dict[tuple[str, ...], float]:
    return {
        labels[2:]: value for (known, labels), value in meter._counts.items() if known is metric
    }


def streamed(engine: EndpointChatEngine, **options: Any) -> list[str]:
    async def read() -> list[str]:
        request = generation_of(engine, "hello", **options)
        return [answer.text async for answer in engine.answers(request, streaming=True)]

    return asyncio.run(read())


def test_a_request_has_the_prompt_of_the_evaluation_the_clients_options_and_the_key_of_the_endpoint() -> (
    None
):
    options = {"temperature": 0.5, "top_p": 0.9, "stop": ["x"], "max_tokens": 4}
    requests: list[dict[str, Any]] = [options | {"seed": -1}, {"seed": 3}, {"logprobs": True}]
    responses, server = ask(completion(" a b ", tokens=(21, 3)), requests=requests)
    answer = responses[0].json()
    assert (answer["model"], answer["version"]) == LABELS
    (choice,) = answer["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("a b", "stop")
    assert answer["usage"] == {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24}
    turns = [("system", "own"), ("user", "q"), ("assistant", "a"), ("user", "hello")]
    messages = [{"role": role, "content": content} for role, content in turns]
    prompt = {"model": "m", "messages": messages}
    assert server.bodies == [
        prompt | options | {"seed": (1 << 63) - 1},
        prompt | {"temperature": 0, "max_tokens": 8},
    ]
    assert server.authorizations == [f"Bearer {KEY}"] * 2
    assert responses[2].status_code == 400  # an endpoint has no log-probabilities


def test_a_format_of_a_request_is_passed_on_and_never_left_out() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    formats = [
        {"type": "json_object"},
        {"type": "text"},
        schema,
        schema,
        {"type": "choice", "choice": ["yes", "no"]},
    ]
    replies = [completion("{}"), completion("a"), refusal(400, "response_format is not supported")]
    requests = [{"response_format": format} for format in formats]
    responses, server = ask(*replies, requests=requests)
    assert [response.status_code for response in responses] == [200, 200, 400, 400, 400]
    sent = [body.get("response_format") for body in server.bodies]
    assert sent == [{"type": "json_object"}, None, schema, schema]
    assert responses[-1].json()["error"]["param"] == "response_format"


def test_the_format_of_a_version_is_left_out_if_the_endpoint_refused_it_in_the_evaluation() -> None:
    with endpoint_server(lambda *_: completion("{}")) as server:
        engine = engine_of(server, omitted=("response_format",))
        format = JsonObjectFormat(type="json_object")
        engine.prompting = engine.prompting.model_copy(update={"response_format": format})
        with client_of(engine) as client:
            assert chat(client).status_code == 200
    assert "response_format" not in server.bodies[0]


def test_a_streamed_response_has_the_last_token_counts_of_the_endpoint() -> None:
    meter = Meter()
    usage = last_events((21, 1))[0]  # some endpoints repeat it in each event
    parts = [event("one"), usage, event(" two", end="length"), *last_events((21, 3))]
    [response], _ = ask(stream(parts), requests=[{"stream": True}], meter=meter)
    *_, choice, done = events_of(response)
    assert (choice["choices"][0]["finish_reason"], done) == ("length", "[DONE]")
    assert counts(meter, ENDPOINT_TOKENS) == {("prompt", "no"): 21, ("completion", "no"): 3}


@pytest.mark.parametrize(
    ("reply", "status", "type", "num_requests", "retry_after"),
    [
        # longer than a request waits for
        (refusal(429, "secret", Retry_After="7"), 503, "endpoint_busy", 1, "7"),
        (refusal(429, "secret"), 503, "endpoint_busy", 3, "5"),
        (refusal(500, "secret"), 503, "endpoint_unreachable", 3, "5"),
        (Reply(waits=True), 504, "endpoint_timeout", 1, None),
        (refusal(401, f"wrong key {KEY}"), 502, "endpoint_failed", 1, None),
        # a redirect is not followed
        (Reply(307, b"secret", {"Location": "completions"}), 502, "endpoint_refused", 1, None),
        (refusal(400, "seed is not supported"), 400, "endpoint_refused", 1, None),
        (refusal(400, "no", code="context_length_exceeded"), 400, "too_long", 1, None),
        (refusal(400, "no", code="content_filter"), 400, "endpoint_refused", 1, None),
        (Reply(content=b"secret"), 502, "endpoint_failed", 1, None),
        # not a complete answer, which was requested
        (stream([event("secret")]), 502, "endpoint_failed", 1, None),
    ],
)
def test_a_failure_is_an_error_in_our_format_without_the_endpoints_message_and_key(
    reply: Reply,
    status: int,
    type: str,
    num_requests: int,
    retry_after: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = Meter()
    timeout_s = 0.2 if reply.waits else 5
    with caplog.at_level(logging.DEBUG):
        options = {"temperature": 1.0, "seed": 3}
        [response], server = ask(reply, requests=[options], meter=meter, timeout_s=timeout_s)
    assert (response.status_code, response.json()["error"]["type"]) == (status, type)
    assert len(server.bodies) == num_requests
    assert counts(meter, ENDPOINT_REQUESTS) == {(type,): num_requests}
    is_charged = type == "endpoint_timeout" or reply.status == 200
    assert (counts(meter, ENDPOINT_TOKENS).get(("prompt", "yes"), 0) > 0) == is_charged
    assert response.headers.get("retry-after") == retry_after
    assert KEY not in response.text + str(response.headers) + caplog.text
    assert "secret" not in response.text
    assert "127.0.0.1" not in response.text


def test_a_request_is_sent_again_only_before_the_first_piece() -> None:
    meter = Meter()
    replies = [refusal(503, "starting"), stream([event("one")]), completion("never")]
    [response], server = ask(*replies, requests=[{"stream": True}], meter=meter)
    events = events_of(response)
    assert len(server.bodies) == 2
    assert events[1]["choices"][0]["delta"] == {"content": "one"}
    assert events[-1]["error"]["type"] == "endpoint_unreachable"
    assert counts(meter, ENDPOINT_REQUESTS) == {("endpoint_unreachable",): 2}


def test_tokens_spend_and_another_model_are_counted_and_the_other_model_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = Meter()
    replies = [
        completion("yes", model="m-new", tokens=(100, 10)),
        completion("12345", model="m-new", tokens=None),
    ]
    prices = {"prices": (2.0, 5.0)}
    responses, _ = ask(*replies, requests=[{}, {}], meter=meter, **prices)
    tokens = counts(meter, ENDPOINT_TOKENS)
    assert (tokens["prompt", "no"], tokens["completion", "no"]) == (100, 10)
    assert tokens["prompt", "yes"] > 0  # estimated, because the endpoint does not count them
    assert tokens["completion", "yes"] == 2
    assert counts(meter, ENDPOINT_SPEND)["no",] == pytest.approx(0.25)
    assert counts(meter, OTHER_MODEL) == {(): 2}
    reported = [response.json()["choices"][0]["reported_model"] for response in responses]
    assert reported == ["m-new"] * 2
    assert caplog.text.count("'m-new'") == 1


def long_stream(*pieces: bytes, pause_s: float = 0.0) -> Reply:
    def repeated() -> Iterator[bytes]:
        yield event("one")
        for _ in range(1000):  # or until the connection is closed
            yield from pieces
            time.sleep(pause_s)

    return stream(repeated())


@pytest.mark.parametrize(
    ("piece", "pause_s", "limits"),
    [
        (b": still here\n\n", 0.01, {}),
        (event(""), 0.01, {}),
        (event("x"), 0.01, {"MAX_STREAM_TIMEOUTS": 1}),
        (event("x" * 4096), 0.0, {"MAX_ANSWER_BYTES": 1 << 16}),
    ],
    ids=["comments", "empty events", "time", "size"],
)
def test_a_stream_has_limits(
    piece: bytes, pause_s: float, limits: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in limits.items():
        monkeypatch.setattr(endpoint_client, name, value)
    with (
        endpoint_server(lambda *_: long_stream(piece, pause_s=pause_s)) as server,
        pytest.raises(RequestError) as caught,
    ):
        streamed(engine_of(server, timeout_s=0.3))
    assert (caught.value.type == "endpoint_timeout") == ("MAX_ANSWER_BYTES" not in limits)


def test_a_stream_of_an_endpoint_that_ignores_stop_texts_is_closed_at_the_first_one() -> None:
    parts = [event(" tw"), event("o "), event("three")]
    with endpoint_server(lambda *_: long_stream(*parts)) as server:
        assert streamed(engine_of(server), stop=["two", "three"])[-1] == "one"


def test_a_client_that_leaves_cancels_the_request_whose_tokens_are_estimated() -> None:
    closed = threading.Event()

    def pieces() -> Iterator[bytes]:
        try:
            yield event("one")
            while True:  # until the connection is closed
                yield event("x" * 4096)
        finally:
            closed.set()

    async def leave(engine: EndpointChatEngine) -> None:
        answers = engine.answers(generation_of(engine, "hello"), streaming=True)
        assert (await anext(answers)).text == "one"  # each piece is passed on at once
        await answers.aclose()

    meter = Meter()
    with endpoint_server(lambda *_: stream(pieces())) as server:
        asyncio.run(leave(engine_of(server, meter=meter, prices=(1.0, 1.0))))
        assert closed.wait(10)
    assert counts(meter, ENDPOINT_REQUESTS) == {("cancelled",): 1}
    num_prompt = -(-len(json.dumps(server.bodies[0])) // 4)
    tokens = counts(meter, ENDPOINT_TOKENS)
    assert (tokens["prompt", "yes"], tokens["completion", "yes"]) == (num_prompt, 1)
    assert counts(meter, ENDPOINT_SPEND)["yes",] == pytest.approx((num_prompt + 1) / 1000)


def test_requests_at_the_same_time_are_bounded() -> None:
    release = threading.Barrier(3)  # three of four slots: one client leaves a slot for others

    def answer(*_: object) -> Reply:
        release.wait(10)
        return completion("yes")

    async def ask_at_once(engine: EndpointChatEngine) -> None:
        await asyncio.gather(*(whole_answer(generation_of(engine, "hello")) for _ in range(6)))

    with endpoint_server(answer) as server:
        asyncio.run(ask_at_once(engine_of(server)))
    assert (len(server.bodies), server.max_at_once) == (6, 3)
