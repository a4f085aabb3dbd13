"""Generation: complete answers, stream events, and limits on tokens."""

import asyncio
import json
from contextlib import aclosing
from typing import Any

import pytest

from serving.engines.base_chat import GenerationRequest, PartialAnswer, Sampling
from serving.http.chat_format import STREAM_OBJECT, answer_head
from serving.http.chat_schemas import parse_chat
from serving.http.schemas import RequestError
from serving.replica.generation import (
    OnFinish,
    generation_request,
    stream_events,
    token_limit,
    whole_answer,
)
from tests.unit.serving.replica.fake_engine import FakeEngine

WORDS = ("</s>", "▁a", "▁fracture", "▁is", "▁break")
HEAD = answer_head(STREAM_OBJECT, request_id="r", model="m", version="v")


def generation(engine: FakeEngine, *, stops: tuple[str, ...] = ()) -> GenerationRequest:
    return GenerationRequest(engine, [1, 2, 3], 8, Sampling(0.0, 1.0, 0), stops)


def streamed(
    engine: FakeEngine,
    *,
    stops: tuple[str, ...] = (),
    with_usage: bool = False,
    on_finish: OnFinish = lambda _: None,
) -> list[Any]:
    """Return the decoded events of a stream."""

    async def read() -> list[bytes]:
        events = stream_events(
            generation(engine, stops=stops), head=HEAD, with_usage=with_usage, on_finish=on_finish
        )
        return [event async for event in events]

    lines = [event.removeprefix(b"data: ").removesuffix(b"\n\n") for event in asyncio.run(read())]
    return [line.decode() if line == b"[DONE]" else json.loads(line) for line in lines]


def text_of(events: list[Any]) -> str:
    return "".join(
        event["choices"][0]["delta"].get("content", "")
        for event in events
        if event != "[DONE]" and event["choices"]
    )


@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
@pytest.mark.parametrize(
    ("generated", "stops", "text", "reason"),
    [
        ("one two</s>", (), "one two", "stop"),
        ("one two", (), "one two", "length"),
        (" one </s>", (), "one", "stop"),
        ("</s>", (), "", "stop"),
        ("one two three</s>", ("tw",), "one", "stop"),
        ("one two three</s>", ("x", "e t"), "on", "stop"),
        ("one twx</s>", ("two",), "one twx", "stop"),
    ],
)
def test_the_concatenated_events_equal_the_answer(
    generated: str, stops: tuple[str, ...], text: str, reason: str, at_once: int
) -> None:
    whole = asyncio.run(
        whole_answer(generation(FakeEngine(generated, at_once=at_once), stops=stops))
    )
    assert (whole.text, whole.finish_reason) == (text, reason)
    events = streamed(FakeEngine(generated, at_once=at_once), stops=stops, with_usage=True)
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert text_of(events) == text
    assert [event["choices"][0]["finish_reason"] for event in events[:-3]] == [None] * len(
        events[:-3]
    )
    assert (events[-3]["choices"][0]["finish_reason"], events[-1]) == (reason, "[DONE]")
    assert events[-2]["usage"]["completion_tokens"] == whole.num_tokens


def test_generation_ends_at_a_stop_text() -> None:
    engine = FakeEngine("one two three")
    answer = asyncio.run(whole_answer(generation(engine, stops=("tw",))))
    assert answer == PartialAnswer("one", 6, "stop")
    assert (engine.num_generated, engine.num_active) == (6, 0)


def test_a_streamed_answer_is_reported_once_even_after_a_disconnect_or_a_failure_which_is_its_last_event() -> (
    None
):
    reported: list[PartialAnswer] = []
    streamed(FakeEngine("one two</s>"), on_finish=reported.append)
    events = streamed(FakeEngine("abcd", fails_after=2), on_finish=reported.append)
    assert text_of(events[:-1]) == "ab"
    assert events[-1]["error"]["type"] == "engine_failed"
    with pytest.raises(RequestError):
        streamed(FakeEngine("abcd", fails_after=0), on_finish=reported.append)

    async def disconnect() -> None:
        events = stream_events(
            generation(FakeEngine("one two")),
            head=HEAD,
            with_usage=False,
            on_finish=reported.append,
        )
        async with aclosing(events):
            async for event in events:
                if b'"content":"n"' in event:
                    break

    asyncio.run(disconnect())
    assert [answer.text for answer in reported] == ["one two", "ab", "on"]


def request_of(fields: dict[str, Any], *, max_new_tokens: int | None = None) -> GenerationRequest:
    """Return the generation of a chat request whose tokenizer makes one token per character."""
    body = {"messages": [{"role": "user", "content": "abc"}]} | fields
    request, engine = parse_chat(json.dumps(body).encode()), FakeEngine("")
    num_tokens = len(request.conversation[-1][1])
    limit = token_limit(request, engine=engine, max_new_tokens=max_new_tokens)
    return generation_request(request, [1] * num_tokens, engine=engine, max_new_tokens=limit)


def test_more_tokens_than_evaluated_need_a_higher_limit_in_the_recipe() -> None:
    assert request_of({"max_tokens": 3}).max_new_tokens == 3
    assert request_of({"max_tokens": 20}, max_new_tokens=20).max_new_tokens == 20
    assert request_of({}, max_new_tokens=20).max_new_tokens == 8
    assert request_of({}, max_new_tokens=4).max_new_tokens == 4
    for limit, most in ((None, 8), (20, 20), (4, 4)):
        with pytest.raises(RequestError) as caught:
            request_of({"max_tokens": most + 1}, max_new_tokens=limit)
        assert (caught.value.status, caught.value.param) == (400, "max_tokens")


def test_a_prompt_without_room_for_its_answer_is_a_400_with_openais_code() -> None:
    with pytest.raises(RequestError) as caught:
        request_of({"messages": [{"role": "user", "content": "abc" * 20}]})
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")


LOGPROBS: list[dict[str, Any]] = [
    {},
    {"logprobs": False},
    {"logprobs": True},
    {"logprobs": True, "top_logprobs": 2},
]


def test_the_default_is_greedy_decoding_with_a_random_seed_and_without_log_probabilities() -> None:
    assert request_of({"seed": -1}).sampling.seed == 2**64 - 1
    assert request_of({}).sampling.seed != request_of({}).sampling.seed
    assert request_of({}).sampling[:2] == (0.0, 1.0)
    num_likely = [request_of(fields).num_likely for fields in LOGPROBS]
    assert num_likely == [None, None, 0, 2]
