"""The engine of stored answers, and retrieved examples in the prompt of a language model."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines.nearest_engine import NearestEngine
from serving.replica.generation import whole_answer
from tailorbird.models.retrieval.index import RetrievalIndex, build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests.build import pairs, rows
from tests.small_chat import tokenizer
from tests.unit.serving.replica.fake_engine import TOKENIZER, FakeEngine, generation_of

ANSWERS = (("blue sky", "Blue\u2014as ever!"), ("green leaf", "one two three four"))
WHOLE = ANSWERS[1][1]


def engine_of() -> NearestEngine:
    retrieval = Retrieval(num_examples=1, max_prompt_tokens=64, index_sha256="0" * 64)
    loaded: Any = SimpleNamespace(
        version=SimpleNamespace(version="v"),
        prompting=Prompting(system="s", max_new_tokens=8, retrieval=retrieval),
        index=build_index(pairs(ANSWERS, chat=True), seed=0),
    )
    return NearestEngine(loaded, tokenizer=tokenizer())


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 1.5, "seed": 3}, (WHOLE, 18, "stop")),
        ({"max_tokens": 4}, ("one", 4, "length")),
        ({"stop": "two"}, ("one", 3, "stop")),
        ({"max_tokens": 6, "stop": "two"}, ("one tw", 6, "length")),
    ],
)
def test_max_tokens_and_stop_texts_apply(fields: dict[str, Any], expected: Any) -> None:
    generation = generation_of(engine_of(), "green leaf", **fields)
    assert asyncio.run(whole_answer(generation))[:3] == expected


INDEXED = ("blue sky", "green leaf", "green grass", "red rose")
FIRST = "<user>green grass</s><assistant>a2</s>"
NEAREST = "<user>green leaf</s><assistant>a1</s>"


def index_of(questions: tuple[str, ...] = INDEXED) -> RetrievalIndex:
    """Return an index whose answers are `a0`, `a1`, ..."""
    answers = [f"a{number}" for number in range(len(questions))]
    return build_index(rows(questions, answers, chat=True), seed=0)


@pytest.mark.parametrize(
    ("max_length", "max_new_tokens", "shown"),
    [(256, 8, FIRST + NEAREST), (50, 8, NEAREST), (64, 40, "")],
)
def test_the_nearest_training_rows_are_in_the_prompt_as_far_as_they_leave_room_for_the_answer(
    max_length: int, max_new_tokens: int, shown: str
) -> None:
    retrieval = Retrieval(num_examples=2, max_prompt_tokens=200, index_sha256="0" * 64)
    prompting = Prompting(system="s", max_new_tokens=8, retrieval=retrieval)
    engine = FakeEngine("", prompting=prompting, index=index_of())
    engine.max_length = max_length
    prompt = engine.chat_prompt((("user", "green leafs"),), max_new_tokens=max_new_tokens)
    text = "".join(TOKENIZER.convert_ids_to_tokens(prompt))
    assert text == f"<system>s</s>{shown}<user>green leafs</s><assistant>"
