"""The engine behind a chat replica, over a tiny model with random weights."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest

from serving.engines.base_chat import ChatEngine, Sampling
from serving.engines.transformers_engine import TransformersEngine
from serving.http.schemas import RequestError
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import answer_prompts
from tailorbird.registry.versions import Prompting
from tests.small_chat import language_model, tokenizer

TOKENIZER = tokenizer()
LIMIT = 24
PROMPTS = [
    prompt_tokens((("user", text),), tokenizer=TOKENIZER, system="be brief")
    for text in ("abc", "what is a dog", "x", "zzzz zzzz zzzz", "one two three four five six")
]
GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)
T = TypeVar("T")


def engine(lm: Any = None) -> TransformersEngine:
    loaded: Any = SimpleNamespace(
        model=ChatModel(lm or language_model()),
        tokenizer=TOKENIZER,
        prompting=Prompting(system="be brief", max_new_tokens=LIMIT),
        version=SimpleNamespace(version="v"),
    )
    return TransformersEngine(loaded, max_batch_size=8)


@pytest.fixture(scope="module")
def shared() -> Iterator[TransformersEngine]:
    shared_engine = engine()
    yield shared_engine
    shared_engine._manager.destroy()


async def tokens(
    generator: ChatEngine, prompt: list[int], *, sampling: Sampling = GREEDY, streaming: bool = True
) -> list[list[int]]:
    """Each state of an answer."""
    generating = generator.generate(prompt, max_new_tokens=LIMIT, sampling=sampling, streaming=streaming)
    with generator.in_use():
        async with aclosing(generating):
            return [tokens_so_far async for tokens_so_far, _ in generating]


async def ends_what_it_began(make: Callable[[], ChatEngine]) -> None:
    """Unload an engine while it answers; it is created in the event loop that it lives in."""
    old = make()
    answering = asyncio.create_task(tokens(old, PROMPTS[0]))
    while not old.num_active:
        await asyncio.sleep(0)
    old.unload()
    assert old._ending is None
    states = await answering
    assert len(states[-1]) == LIMIT or states[-1][-1] == old.end_id
    while old._ending is None:
        await asyncio.sleep(0)
    await old._ending
    assert not old.running
    with pytest.raises(RequestError) as caught:
        await tokens(old, PROMPTS[0])
    assert caught.value.status == 503


async def together(*works: Coroutine[Any, Any, T]) -> list[T]:
    return list(await asyncio.gather(*works))


def test_without_a_temperature_the_answers_are_those_that_are_evaluated(shared: TransformersEngine) -> None:
    lm = language_model()
    expected = answer_prompts(lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id)
    for streaming in (True, False):
        answers = asyncio.run(together(*[tokens(shared, prompt, streaming=streaming) for prompt in PROMPTS]))
        for states, answer in zip(answers, expected, strict=True):
            assert [token for token in states[-1] if token != TOKENIZER.eos_token_id] == answer.tokens


def test_a_stream_grows_by_what_comes_next(shared: TransformersEngine) -> None:
    states = asyncio.run(tokens(shared, PROMPTS[0]))
    assert len(states) > 1
    assert all(states[-1][: len(state)] == state for state in states)
    assert states[-1] == asyncio.run(tokens(shared, PROMPTS[0], streaming=False))[0]


def test_a_seed_draws_the_same_answer_alone_and_among_others(shared: TransformersEngine) -> None:
    warm = Sampling(temperature=1.5, top_p=0.9, seed=5)
    alone = asyncio.run(tokens(shared, PROMPTS[1], sampling=warm))[-1]
    others = [warm._replace(seed=seed) for seed in range(6)]
    answers = asyncio.run(
        together(*[tokens(shared, PROMPTS[1], sampling=sampling) for sampling in [warm, *others, GREEDY]])
    )
    assert answers[0][-1] == alone == answers[6][-1]
    assert len({tuple(states[-1]) for states in answers}) == 7
    assert answers[-1][-1] == asyncio.run(tokens(shared, PROMPTS[1]))[-1]


def test_an_answer_that_nobody_waits_for_leaves_the_engine(shared: TransformersEngine) -> None:
    async def hang_up() -> None:
        generating = shared.generate(PROMPTS[0], max_new_tokens=200, sampling=GREEDY, streaming=True)
        async with aclosing(generating):
            await anext(generating)
        await tokens(shared, PROMPTS[1])
        await tokens(shared, PROMPTS[1])

    asyncio.run(hang_up())
    scheduler = shared._manager.batch_processor.scheduler
    assert not scheduler.active_requests
    assert not scheduler.waiting_requests
    assert not shared._manager.output_router.result_handlers


def test_a_retired_engine_ends_what_it_began_and_then_itself() -> None:
    asyncio.run(ends_what_it_began(engine))


def test_a_retired_engine_leaves_no_model_behind() -> None:
    import weakref

    async def swap() -> Any:
        lm = language_model()
        old = engine(lm)
        await tokens(old, PROMPTS[0])
        old.unload()
        await cast(Any, old._ending)
        return weakref.ref(lm)

    left = asyncio.run(swap())
    gc.collect()
    assert left() is None


def test_a_prompt_and_its_answer_have_the_models_positions(shared: TransformersEngine) -> None:
    assert shared.max_length == 256
