"""The engine of stored answers."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines.base_chat import PartialAnswer, StoredAnswer
from serving.engines.nearest_engine import NearestEngine
from serving.http.chat_format import STREAM_OBJECT, answer_head
from serving.http.chat_schemas import parse_chat
from serving.http.schemas import RequestError
from serving.replica.generation import generation_request, stream_events, token_limit, whole_answer
from tailorbird.data.rows import Rows
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests.small_chat import tokenizer

ANSWERS = {"blue sky": "Blue\u2014as ever!", "green leaf": "one two three four"}


def engine_of() -> NearestEngine:
    turns = tuple((("user", question),) for question in ANSWERS)
    rows = Rows(("0", "1"), tuple(ANSWERS), tuple(ANSWERS.values()), conversations=turns)
    retrieval = Retrieval(num_examples=1, max_prompt_tokens=64, index_sha256="0" * 64)
    prompting = Prompting(system="s", max_new_tokens=8, retrieval=retrieval)
    loaded: Any = SimpleNamespace(
        version=SimpleNamespace(version="v"), prompting=prompting, index=build_index(rows, seed=0)
    )
    return NearestEngine(loaded, tokenizer=tokenizer())


def answer_of(text: str, **fields: Any) -> tuple[PartialAnswer, StoredAnswer, list[Any]]:
    """Return the answer, its prompt, and the events of the same answer as a stream."""
    engine = engine_of()
    body = {"messages": [{"role": "user", "content": text}]} | fields
    request = parse_chat(json.dumps(body).encode())
    limit = token_limit(request, engine=engine, max_new_tokens=None)
    prompt = engine.chat_prompt(request.conversation, max_new_tokens=limit)
    assert isinstance(prompt, StoredAnswer)
    generation = generation_request(request, prompt, engine=engine, max_new_tokens=limit)
    head = answer_head(STREAM_OBJECT, request_id="r", model="m", version="v")

    async def read() -> tuple[PartialAnswer, list[bytes]]:
        events = stream_events(generation, head=head, with_usage=True, on_finish=lambda _: None)
        return await whole_answer(generation), [event async for event in events]

    answer, events = asyncio.run(read())
    return answer, prompt, [json.loads(event.removeprefix(b"data: ")) for event in events[:-1]]


def test_the_answer_of_the_nearest_row_is_unchanged_even_above_the_limit_of_generated_answers() -> (
    None
):
    answer, prompt, _ = answer_of("blue skies")
    assert answer == PartialAnswer("Blue\u2014as ever!", 13, "stop", prompt.similarity)
    assert (len(prompt), 0 < prompt.similarity < 1) == (10, True)
    assert answer_of("green leaf")[1].similarity == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, PartialAnswer("one two three four", 18, "stop")),
        ({"max_tokens": 6}, PartialAnswer("one tw", 6, "length")),
        ({"max_tokens": 4}, PartialAnswer("one", 4, "length")),
        ({"stop": "two"}, PartialAnswer("one", 3, "stop")),
        ({"max_tokens": 6, "stop": "two"}, PartialAnswer("one tw", 6, "length")),
        ({"temperature": 1.5, "seed": 3}, PartialAnswer("one two three four", 18, "stop")),
    ],
)
def test_max_tokens_and_stop_texts_apply_and_the_stream_equals_the_answer(
    fields: dict[str, Any], expected: PartialAnswer
) -> None:
    answer, prompt, events = answer_of("green leaf", **fields)
    assert answer == expected._replace(confidence=prompt.similarity)
    *chunks, usage = events
    assert [chunk["choices"][0].get("confidence") for chunk in chunks] == [
        None,
        None,
        prompt.similarity,
    ]
    assert (
        "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        == expected.text
    )
    assert chunks[-1]["choices"][0]["finish_reason"] == expected.finish_reason
    assert usage["usage"]["prompt_tokens"] == len(prompt) == 10
    assert usage["usage"]["completion_tokens"] == expected.num_tokens


def test_a_conversation_can_be_longer_than_any_context() -> None:
    assert answer_of("green leaf" * 1000)[0].text == ANSWERS["green leaf"]


def test_a_request_cannot_set_the_format_of_a_stored_answer() -> None:
    with pytest.raises(RequestError) as caught:
        answer_of("blue sky", response_format={"type": "json_object"})
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    assert answer_of("blue sky", response_format={"type": "text"})[0].text == ANSWERS["blue sky"]
