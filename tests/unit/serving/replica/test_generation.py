"""Generation: complete answers, stream events, and limits on tokens."""

import asyncio
import json
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any

import pytest

from serving.engines.base_chat import PartialAnswer
from serving.http.chat_format import STREAM_OBJECT, answer_head
from serving.http.schemas import RequestError
from serving.replica.generation import stream_events, whole_answer
from tests.unit.serving.replica.fake_engine import FakeEngine, generation_of

HEAD = answer_head(STREAM_OBJECT, request_id="r", model="m", version="v")


def streamed(
    engine: FakeEngine,
    *,
    stops: Sequence[str] | None = None,
    reported: list[PartialAnswer] | None = None,
    until: bytes = b"nothing",
) -> list[Any]:
    """Return the decoded events of a stream to a client that disconnects after one with `until`."""
    on_finish = ([] if reported is None else reported).append
    request = generation_of(engine, "abc", stop=stops)

    async def read() -> list[bytes]:
        lines = []
        events = stream_events(request, head=HEAD, with_usage=True, on_finish=on_finish)
        async with aclosing(events):
            async for event in events:
                lines.append(event.removeprefix(b"data: ").removesuffix(b"\n\n"))
                if until in event:
                    break
        return lines

    return [line if line == b"[DONE]" else json.loads(line) for line in asyncio.run(read())]


def text_of(events: list[Any]) -> str:
    choices = [choice for event in events for choice in event.get("choices", ())]
    return "".join(choice["delta"].get("content", "") for choice in choices)


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize(
    ("generated", "stops", "text", "reason"),
    [
        (" one two ", None, "one two", "length"),
        ("</s>", None, "", "stop"),
        ("one two three</s>", ["x", "e t"], "on", "stop"),
    ],
)
def test_the_concatenated_events_equal_the_answer(
    generated: str, stops: Sequence[str] | None, text: str, reason: str, at_once: int
) -> None:
    engine = FakeEngine(generated, at_once=at_once)
    whole = asyncio.run(whole_answer(generation_of(engine, "abc", stop=stops)))
    assert (whole.text, whole.finish_reason) == (text, reason)
    assert (engine.num_generated, engine.num_active) == (whole.num_tokens, 0)
    assert (whole.num_tokens < len(engine.tokens)) == (stops is not None)
    *events, final, usage, done = streamed(engine, stops=stops)
    assert text_of([*events, final]) == text
    assert (final["choices"][0]["finish_reason"], done) == (reason, b"[DONE]")
    assert usage["usage"]["completion_tokens"] == whole.num_tokens


def test_a_streamed_answer_is_reported_once_even_after_a_disconnect_or_a_failure_which_is_its_last_event() -> (
    None
):
    reported: list[PartialAnswer] = []
    streamed(FakeEngine("one two</s>"), reported=reported)
    *events, failure = streamed(FakeEngine("abcd", fails_after=2), reported=reported)
    assert (text_of(events), failure["error"]["type"]) == ("ab", "engine_failed")
    with pytest.raises(RequestError):
        streamed(FakeEngine("abcd", fails_after=0), reported=reported)
    streamed(FakeEngine("one two"), reported=reported, until=b'"content":"n"')
    assert [answer.text for answer in reported] == ["one two", "ab", "on"]


@pytest.mark.parametrize(("in_recipe", "most", "default"), [(20, 20, 8), (4, 4, 4)])
def test_more_tokens_than_evaluated_need_a_higher_limit_in_the_recipe(
    in_recipe: int | None, most: int, default: int
) -> None:
    def limit(**fields: Any) -> int | None:
        engine = FakeEngine("")
        return generation_of(engine, "abc", max_new_tokens=in_recipe, **fields).max_new_tokens

    assert limit() == default
    assert limit(max_tokens=most) == most
    with pytest.raises(RequestError) as caught:
        limit(max_tokens=most + 1)
    assert (caught.value.status, caught.value.param) == (400, "max_tokens")
