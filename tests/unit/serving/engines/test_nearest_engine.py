"""The engine of stored answers."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines.base_chat import PartialAnswer, StoredAnswer
from serving.engines.nearest_engine import NearestEngine
from serving.http.chat_schemas import parse_chat
from serving.replica.generation import generation_request, token_limit, whole_answer
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests.build import pairs
from tests.small_chat import tokenizer

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


def answer_of(text: str, **fields: Any) -> tuple[PartialAnswer, StoredAnswer]:
    """Return the answer and its prompt."""
    engine = engine_of()
    body = {"messages": [{"role": "user", "content": text}]} | fields
    request = parse_chat(json.dumps(body).encode())
    limit = token_limit(request, engine=engine, max_new_tokens=None)
    prompt = engine.chat_prompt(request.conversation, max_new_tokens=limit)
    assert isinstance(prompt, StoredAnswer)
    generation = generation_request(request, prompt, engine=engine, max_new_tokens=limit)
    return asyncio.run(whole_answer(generation)), prompt


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
    assert answer_of("green leaf", **fields)[0][:3] == expected
