"""vLLM behind a chat replica, over a tiny model with random weights; without vLLM, what is said of its absence."""

import asyncio
import importlib.util
from collections.abc import Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from models.chat import ChatModel, answer_prompts
from models.registry import Prompting
from serving.generate import Sampling
from serving.vllm_engine import EngineMissing, VllmEngine, start
from tests.small_chat import language_model
from tests.unit.serving.test_generate import GREEDY, LIMIT, PROMPTS, TOKENIZER, ends_what_it_began, tokens

needs_vllm = pytest.mark.skipif(not importlib.util.find_spec("vllm"), reason="vLLM is not installed")
WIDTH = 128  # heads of 32, as small as vLLM takes them


def loaded() -> Any:
    return SimpleNamespace(
        model=ChatModel(language_model(width=WIDTH)),
        tokenizer=TOKENIZER,
        prompting=Prompting(system="be brief", max_new_tokens=LIMIT),
        version=SimpleNamespace(version="v", dtype="float32"),
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """vLLM lives in one."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine() -> Iterator[VllmEngine]:
    found = start(loaded(), max_batch_size=8)
    yield found
    found.end()


async def together(engine: VllmEngine, prompts: list[list[int]], **options: Any) -> list[list[list[int]]]:
    return list(await asyncio.gather(*[tokens(engine, prompt, **options) for prompt in prompts]))


@pytest.mark.skipif(bool(importlib.util.find_spec("vllm")), reason="vLLM is installed")
def test_without_vllm_it_is_said_what_to_install() -> None:
    with pytest.raises(EngineMissing, match=r"pip install --editable '\.\[gpu\]'"):
        start(loaded(), max_batch_size=8)


@needs_vllm
def test_without_a_temperature_the_answers_are_those_that_are_evaluated(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    lm = language_model(width=WIDTH)
    expected = answer_prompts(lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id)
    for streaming in (True, False):
        found = loop.run(together(engine, PROMPTS, streaming=streaming))
        for states, answer in zip(found, expected, strict=True):
            assert [token for token in states[-1] if token != TOKENIZER.eos_token_id] == answer.tokens
            assert (states[-1][-1] == engine.end_id) == answer.finished
            assert len(states) == 1 or streaming
            assert all(states[-1][: len(state)] == state for state in states)
    assert engine.max_length == 256


@needs_vllm
def test_a_seed_draws_the_same_answer_alone_and_among_others(engine: VllmEngine, loop: asyncio.Runner) -> None:
    warm = Sampling(temperature=1.5, top_p=0.9, seed=2**64 - 5)
    alone = loop.run(tokens(engine, PROMPTS[1], sampling=warm))[-1]
    found = loop.run(together(engine, [PROMPTS[0], PROMPTS[1], PROMPTS[2]], sampling=warm))
    assert found[1][-1] == alone
    assert loop.run(tokens(engine, PROMPTS[1], sampling=warm._replace(seed=1)))[-1] != alone


@needs_vllm
def test_an_answer_that_nobody_waits_for_leaves_the_engine(engine: VllmEngine, loop: asyncio.Runner) -> None:
    async def hang_up() -> None:
        asked = engine.generate(PROMPTS[0], max_new_tokens=200, sampling=GREEDY, streaming=True)
        async with aclosing(asked):
            await anext(asked)
        await tokens(engine, PROMPTS[1])

    loop.run(hang_up())
    assert not engine._engine.output_processor.has_unfinished_requests()


@needs_vllm
def test_a_retired_engine_ends_what_it_began_and_then_itself(loop: asyncio.Runner) -> None:
    loop.run(ends_what_it_began(lambda: start(loaded(), max_batch_size=8)))
