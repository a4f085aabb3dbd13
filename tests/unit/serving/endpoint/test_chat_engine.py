"""Answers of an endpoint through the chat routes, with a real server on the loopback interface."""

import asyncio
import json
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from serving.endpoint.chat_engine import EndpointChatEngine
from serving.engines.base_chat import GenerationRequest, Sampling
from serving.http.metrics import (
    ENDPOINT_REQUESTS,
    ENDPOINT_SPEND,
    ENDPOINT_TOKENS,
    OTHER_MODEL,
    Meter,
)
from serving.http.schemas import RequestError
from tailorbird.config.formats.response_format import JsonObjectFormat
from tailorbird.models.endpoint import client as endpoint_client
from tests.endpoint_server import (
    Reply,
    completion,
    endpoint_server,
    event,
    last_events,
    refusal,
    stream,
)
from tests.unit.serving.endpoint.clients import chat, client_of, engine_of
from tests.unit.serving.endpoint.versions import KEY, VARIABLE

LABELS = ("task", "endpoint-few-shot-0")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, KEY)


def events_of(response: Any) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def counts(meter: Meter, metric: Any) -> dict[tuple[str, ...], float]:
    return {
        labels[2:]: value for (known, labels), value in meter._counts.items() if known is metric
    }


def generation(engine: EndpointChatEngine) -> GenerationRequest:
    prompt = engine.chat_prompt((("user", "hello"),), max_new_tokens=8)
    return GenerationRequest(engine, prompt, 8, Sampling(0.0, 1.0, 0), ())


def test_a_request_has_the_prompt_of_the_evaluation_the_clients_options_and_the_key_of_the_endpoint() -> (
    None
):
    with (
        endpoint_server(lambda *_: completion(" a b ", tokens=(21, 3))) as server,
        client_of(engine_of(server)) as client,
    ):
        response = chat(client, temperature=0.5, top_p=0.9, seed=-1, stop=["x"], max_tokens=4)
        chat(client, seed=3)
    answer = response.json()
    assert (answer["model"], answer["version"]) == LABELS
    assert answer["choices"][0] | {"message": None} == {
        "index": 0,
        "message": None,
        "logprobs": None,
        "finish_reason": "stop",
        "reported_model": "m-2026-01-01",
    }
    assert answer["choices"][0]["message"]["content"] == "a b"
    assert answer["usage"] == {"prompt_tokens": 21, "completion_tokens": 3, "total_tokens": 24}
    turns = [("system", "own"), ("user", "q"), ("assistant", "a"), ("user", "hello")]
    prompt = {
        "model": "m",
        "messages": [{"role": role, "content": content} for role, content in turns],
    }
    options = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": (1 << 63) - 1,
        "stop": ["x"],
        "max_tokens": 4,
    }
    assert server.bodies == [prompt | options, prompt | {"temperature": 0, "max_tokens": 8}]
    assert server.authorizations == [f"Bearer {KEY}"] * 2


def test_a_format_of_a_request_is_passed_on_and_never_left_out() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}

    def reply(body: dict[str, Any], _number: int) -> Reply:
        if body.get("response_format") == schema:
            return refusal(400, "response_format is not supported")
        return completion("{}")

    with endpoint_server(reply) as server, client_of(engine_of(server)) as client:
        accepted = chat(client, response_format={"type": "json_object"})
        chat(client, response_format={"type": "text"})
        refused = [chat(client, response_format=schema) for _ in range(2)]
        choice = chat(client, response_format={"type": "choice", "choice": ["yes", "no"]})
    assert accepted.json()["choices"][0]["message"]["content"] == "{}"
    assert [body.get("response_format") for body in server.bodies] == [
        {"type": "json_object"},
        None,
        schema,
        schema,
    ]
    assert [response.status_code for response in refused] == [400, 400]
    assert choice.status_code == 400
    assert choice.json()["error"]["param"] == "response_format"


def test_the_format_of_a_version_is_left_out_if_the_endpoint_refused_it_in_the_evaluation() -> None:
    format = JsonObjectFormat(type="json_object")
    with endpoint_server(lambda *_: completion("{}")) as server:
        for omitted in ((), ("response_format",)):
            engine = engine_of(server, omitted=omitted)
            engine.prompting = engine.prompting.model_copy(update={"response_format": format})
            with client_of(engine) as client:
                assert chat(client).status_code == 200
    assert [body.get("response_format") for body in server.bodies] == [
        {"type": "json_object"},
        None,
    ]


def test_a_stream_is_passed_on_piece_by_piece() -> None:
    received = threading.Event()

    def pieces() -> Iterator[bytes]:
        yield event("one")
        assert received.wait(10)  # set by the client when it has the first text
        yield event(" two", end="stop")
        yield from last_events((21, 3))

    async def read(engine: EndpointChatEngine) -> list[tuple[str, int, str | None, int | None]]:
        answers = []
        async for answer in engine.answers(generation(engine), streaming=True):
            answers.append(
                (answer.text, answer.num_tokens, answer.finish_reason, answer.num_prompt_tokens)
            )
            received.set()
        return answers

    with endpoint_server(lambda *_: stream(pieces())) as server:
        answers = asyncio.run(read(engine_of(server)))
    assert answers == [
        ("one", 1, None, None),
        ("one two", 2, None, None),
        ("one two", 3, "stop", 21),
    ]
    assert server.bodies[0]["stream"] is True


def test_a_streamed_response_has_the_model_and_the_last_token_counts_of_the_endpoint() -> None:
    meter = Meter()
    usage = last_events((21, 1))[0]  # some endpoints repeat it in each event
    parts = [event("one"), usage, event(" two", end="length"), *last_events((21, 3))]
    with (
        endpoint_server(lambda *_: stream(parts)) as server,
        client_of(engine_of(server, meter=meter)) as client,
    ):
        events = events_of(chat(client, stream=True, stream_options={"include_usage": True}))
    texts = [part["choices"][0]["delta"].get("content") for part in events[:-2]]
    assert texts == ["", "one", " two", None]
    assert events[-3]["choices"][0]["finish_reason"] == "length"
    assert events[-3]["choices"][0]["reported_model"] == "m-2026-01-01"
    assert (events[-2]["usage"]["prompt_tokens"], events[-1]) == (21, "[DONE]")
    assert counts(meter, ENDPOINT_TOKENS) == {("prompt", "no"): 21, ("completion", "no"): 3}


TOO_LONG = Reply(
    400, json.dumps({"error": {"message": "no", "code": "context_length_exceeded"}}).encode()
)
FILTERED = Reply(400, json.dumps({"error": {"message": "no", "code": "content_filter"}}).encode())


@pytest.mark.parametrize(
    ("reply", "status", "type", "num_requests"),
    [
        (
            refusal(429, "slow down", Retry_After="7"),
            503,
            "endpoint_busy",
            1,
        ),  # longer than a request waits for
        (refusal(429, "slow down"), 503, "endpoint_busy", 3),
        (refusal(500, "oops"), 503, "endpoint_unreachable", 3),
        (Reply(waits=True), 504, "endpoint_timeout", 1),
        (refusal(401, f"wrong key {KEY}"), 502, "endpoint_failed", 1),
        (refusal(404, "no such model"), 502, "endpoint_refused", 1),
        (refusal(400, "seed is not supported"), 400, "endpoint_refused", 1),
        (TOO_LONG, 400, "too_long", 1),
        (FILTERED, 400, "endpoint_refused", 1),
        (Reply(content=b"<html>"), 502, "endpoint_failed", 1),
        (
            stream([event("one")]),
            502,
            "endpoint_failed",
            1,
        ),  # not a complete answer, which was requested
    ],
)
def test_a_failure_is_an_error_in_our_format_without_the_endpoints_message_and_key(
    reply: Reply, status: int, type: str, num_requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    meter = Meter()
    with endpoint_server(lambda *_: reply) as server:
        timeout_s = 0.2 if reply.waits else 5
        with (
            client_of(engine_of(server, meter=meter, timeout_s=timeout_s)) as client,
            caplog.at_level(logging.DEBUG),
        ):
            response = chat(client, temperature=1.0, seed=3)
    error = response.json()["error"]
    assert (response.status_code, error["type"], len(server.bodies)) == (status, type, num_requests)
    assert counts(meter, ENDPOINT_REQUESTS) == {(type,): num_requests}
    is_charged = type == "endpoint_timeout" or reply.status == 200
    assert (counts(meter, ENDPOINT_TOKENS).get(("prompt", "yes"), 0) > 0) == is_charged
    seconds = {"endpoint_busy": "7" if num_requests == 1 else "5", "endpoint_unreachable": "5"}
    assert response.headers.get("retry-after") == seconds.get(type)
    written = response.text + str(response.headers) + caplog.text
    assert KEY not in written
    assert not any(text in response.text for text in ("slow down", "oops", "html", "127.0.0.1"))


def test_a_redirect_is_not_followed() -> None:
    with endpoint_server(lambda *_: completion("other")) as other:
        moved = Reply(307, headers={"Location": f"{other.url}/chat/completions"})
        with endpoint_server(lambda *_: moved) as server, client_of(engine_of(server)) as client:
            assert chat(client).status_code == 502
    assert (len(server.bodies), other.bodies) == (1, [])


def test_a_request_is_sent_again_only_before_the_first_piece() -> None:
    replies: Mapping[int, Reply] = {
        0: refusal(503, "starting"),
        1: stream([event("one")]),
        2: completion("never"),
    }
    meter = Meter()
    with (
        endpoint_server(lambda _, number: replies[number]) as server,
        client_of(engine_of(server, meter=meter)) as client,
    ):
        events = events_of(chat(client, stream=True))
    assert len(server.bodies) == 2
    assert events[1]["choices"][0]["delta"] == {"content": "one"}
    assert events[-1]["error"]["type"] == "endpoint_unreachable"
    assert counts(meter, ENDPOINT_REQUESTS) == {("endpoint_unreachable",): 2}


def test_a_value_that_a_client_chose_does_not_change_the_requests_of_others() -> None:
    def answer(body: dict[str, Any], _: int) -> Reply:
        return (
            completion("yes")
            if body.get("temperature", 0) <= 1
            else refusal(400, "temperature must be at most 1")
        )

    with endpoint_server(answer) as server, client_of(engine_of(server)) as client:
        response = chat(client, temperature=1.5)
        assert (response.status_code, response.json()["error"]["param"]) == (400, "temperature")
        assert chat(client).status_code == 200
    assert server.bodies[-1]["temperature"] == 0


def test_tokens_spend_and_another_model_are_counted_and_the_other_model_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    meter = Meter()
    with endpoint_server(lambda *_: completion("yes", model="m-new", tokens=(100, 10))) as server:
        engine = engine_of(server, meter=meter, prices=(2.0, 5.0))
        with client_of(engine, meter=meter) as client:
            answers = [chat(client).json() for _ in range(2)]
    assert counts(meter, ENDPOINT_TOKENS) == {("prompt", "no"): 200, ("completion", "no"): 20}
    assert counts(meter, ENDPOINT_SPEND) == {("no",): pytest.approx(0.5)}
    assert counts(meter, OTHER_MODEL) == {(): 2}
    assert [answer["choices"][0]["reported_model"] for answer in answers] == ["m-new"] * 2
    assert (
        caplog.text.count(
            "the endpoint reports the model 'm-new'; the model 'm-2026-01-01' was evaluated"
        )
        == 1
    )


def test_requests_at_the_same_time_are_bounded() -> None:
    release = threading.Barrier(3)  # three of four slots: one client leaves a slot for others

    def answer(*_: object) -> Reply:
        release.wait(10)
        return completion("yes")

    async def ask(engine: EndpointChatEngine) -> None:
        async def one() -> None:
            async with engine.slot(generation(engine), client="a"):
                async for _ in engine.answers(generation(engine), streaming=False):
                    pass

        await asyncio.gather(*(one() for _ in range(6)))

    with endpoint_server(answer) as server:
        asyncio.run(ask(engine_of(server)))
    assert (len(server.bodies), server.max_at_once) == (6, 3)


def test_logprobs_are_refused_without_a_request() -> None:
    with (
        endpoint_server(lambda *_: completion("yes")) as server,
        client_of(engine_of(server)) as client,
    ):
        assert "have no log-probabilities" in chat(client, logprobs=True).json()["error"]["message"]
    assert server.bodies == []


def streamed(engine: EndpointChatEngine, *, stops: tuple[str, ...] = ()) -> list[str]:
    async def read() -> list[str]:
        request = generation(engine)._replace(stops=stops)
        return [answer.text async for answer in engine.answers(request, streaming=True)]

    return asyncio.run(read())


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
    with endpoint_server(
        lambda *_: long_stream(event(" tw"), event("o "), event("three"))
    ) as server:
        assert streamed(engine_of(server), stops=("two", "three"))[-1] == "one"


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
        answers = engine.answers(generation(engine), streaming=True)
        await anext(answers)
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


def test_tokens_that_the_endpoint_does_not_count_are_estimated() -> None:
    meter = Meter()
    with (
        endpoint_server(lambda *_: completion("12345", tokens=None)) as server,
        client_of(engine_of(server, meter=meter)) as client,
    ):
        chat(client)
    tokens = counts(meter, ENDPOINT_TOKENS)
    assert set(tokens) == {("prompt", "yes"), ("completion", "yes")}
    assert tokens["completion", "yes"] == 2
