"""The transformers engine with a tiny model with random weights."""

import asyncio
import gc
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import pytest
import torch

from serving.engines.base_chat import Sampling
from serving.engines.language_model import Generation, LanguageModelEngine, Likelihoods
from serving.engines.transformers_engine import CACHE_SHARE, TransformersEngine, cache_options
from serving.http.schemas import RequestError
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import Answer, answer_prompts
from tailorbird.models.loading import LoadedChat
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
    version: Any = SimpleNamespace(version="v")
    prompting = Prompting(system="be brief", max_new_tokens=LIMIT)
    loaded = LoadedChat(ChatModel(lm or language_model()), TOKENIZER, prompting, version)
    return TransformersEngine(loaded, max_batch_size=8)


@pytest.fixture(scope="module")
def shared() -> Iterator[TransformersEngine]:
    shared_engine = engine()
    yield shared_engine
    shared_engine._manager.destroy()


async def tokens(
    generator: LanguageModelEngine,
    prompt: list[int],
    *,
    sampling: Sampling = GREEDY,
    streaming: bool = True,
) -> list[list[int]]:
    """Return the pieces of an answer."""
    generating = generator.generate(Generation(prompt, LIMIT, sampling, streaming=streaming))
    with generator.in_use():
        async with aclosing(generating):
            return [new_tokens async for new_tokens, _ in generating]


async def answer_tokens(
    generator: LanguageModelEngine, prompt: list[int], **options: Any
) -> list[int]:
    """Return the tokens of an answer."""
    return sum(await tokens(generator, prompt, **options), list[int]())


async def check_unload(make: Callable[[], LanguageModelEngine]) -> None:
    """Unload an engine during an answer, and check that the answer is finished. `make` runs in the
    event loop."""
    old = make()
    answering = asyncio.create_task(tokens(old, PROMPTS[0]))
    while not old.num_active:
        await asyncio.sleep(0)
    old.unload()
    assert old._ending is None
    answer = sum(await answering, list[int]())
    assert len(answer) == LIMIT or answer[-1] == old.end_id
    while old._ending is None:
        await asyncio.sleep(0)
    await old._ending
    assert not old.running
    with pytest.raises(RequestError) as caught:
        await tokens(old, PROMPTS[0])
    assert caught.value.status == 503


async def together(*works: Coroutine[Any, Any, T]) -> list[T]:
    return list(await asyncio.gather(*works))


def test_greedy_answers_equal_those_of_the_evaluation(shared: TransformersEngine) -> None:
    lm = language_model()
    expected = answer_prompts(lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id)
    for streaming in (True, False):
        answers = asyncio.run(
            together(*[answer_tokens(shared, prompt, streaming=streaming) for prompt in PROMPTS])
        )
        for answered, answer in zip(answers, expected, strict=True):
            assert [token for token in answered if token != TOKENIZER.eos_token_id] == answer.tokens


def test_the_pieces_of_a_stream_are_the_whole_answer(shared: TransformersEngine) -> None:
    pieces = asyncio.run(tokens(shared, PROMPTS[0]))
    assert len(pieces) > 1
    assert [sum(pieces, list[int]())] == asyncio.run(tokens(shared, PROMPTS[0], streaming=False))


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(shared: TransformersEngine) -> None:
    warm = Sampling(temperature=1.5, top_p=0.9, seed=5)
    alone = asyncio.run(answer_tokens(shared, PROMPTS[1], sampling=warm))
    others = [warm._replace(seed=seed) for seed in range(6)]
    answers = asyncio.run(
        together(
            *[
                answer_tokens(shared, PROMPTS[1], sampling=sampling)
                for sampling in [warm, *others, GREEDY]
            ]
        )
    )
    assert answers[0] == alone == answers[6]
    assert len({tuple(answer) for answer in answers}) == 7
    assert answers[-1] == asyncio.run(answer_tokens(shared, PROMPTS[1]))


def test_a_cancelled_request_leaves_the_engine(shared: TransformersEngine) -> None:
    async def cancel() -> None:
        generating = shared.generate(Generation(PROMPTS[0], 200, GREEDY, streaming=True))
        async with aclosing(generating):
            await anext(generating)
        await tokens(shared, PROMPTS[1])
        await tokens(shared, PROMPTS[1])

    asyncio.run(cancel())
    scheduler = shared._manager.batch_processor.scheduler
    assert not scheduler.active_requests
    assert not scheduler.waiting_requests
    assert not shared._manager.output_router.result_handlers


def test_an_unloaded_engine_finishes_its_answers_and_then_ends() -> None:
    asyncio.run(check_unload(engine))


def test_an_unloaded_engine_releases_its_model() -> None:
    import weakref

    async def swap() -> Any:
        lm = language_model()
        old = engine(lm)
        await tokens(old, PROMPTS[0])
        old.unload()
        await asyncio.sleep(0)  # an engine is kept until the next iteration of the event loop
        await cast(Any, old._ending)
        return weakref.ref(lm)

    left = asyncio.run(swap())
    gc.collect()
    assert left() is None


def test_the_reason_of_a_failed_pass_is_the_cause_of_the_error_and_not_in_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm: Any = language_model()
    broken = engine(lm)

    def fail(*_args: Any, **_options: Any) -> Any:
        raise RuntimeError("out of memory for s3://models/task")

    monkeypatch.setattr(lm, "forward", fail)
    with pytest.raises(RequestError) as caught:
        asyncio.run(tokens(broken, PROMPTS[0]))
    assert (caught.value.status, caught.value.message) == (
        500,
        "the engine failed; see the replica's log",
    )
    assert "out of memory for s3://models/task" in caught.value.reason
    broken._manager.destroy()


async def check_logprobs(generator: LanguageModelEngine, expected: Sequence[Answer]) -> None:
    """Check the log-probabilities of the greedy answers to `PROMPTS`, and of the second most likely
    tokens."""

    async def answer(prompt: list[int]) -> Likelihoods:
        likelihoods = Likelihoods(2)
        generating = generator.generate(Generation(prompt, LIMIT, GREEDY, likelihoods=likelihoods))
        with generator.in_use():
            async with aclosing(generating):
                async for _ in generating:
                    pass
        return likelihoods

    for likelihoods, evaluated in zip(await together(*map(answer, PROMPTS)), expected, strict=True):
        assert [token.logprob for token in likelihoods.tokens] == pytest.approx(
            evaluated.logprobs, abs=1e-3
        )
        assert [token.token for token in likelihoods.tokens][
            : len(evaluated.tokens)
        ] == evaluated.tokens
        for token in likelihoods.tokens:
            (first, second) = token.most_likely
            assert first == (token.token, token.logprob)
            assert second[1] < first[1]


def test_log_probabilities_equal_those_of_the_evaluation(shared: TransformersEngine) -> None:
    expected = answer_prompts(
        language_model(), PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id
    )
    asyncio.run(check_logprobs(shared, expected))
    assert not shared._sampler.recorded


def test_log_probabilities_of_sampled_tokens_are_those_of_the_model(
    shared: TransformersEngine,
) -> None:
    recorded = Likelihoods(0)
    warm = Sampling(temperature=3.0, top_p=1.0, seed=1)

    async def answer() -> list[int]:
        generating = shared.generate(Generation(PROMPTS[0], LIMIT, warm, likelihoods=recorded))
        async with aclosing(generating):
            return [token async for new_tokens, _ in generating for token in new_tokens]

    generated = asyncio.run(answer())
    lm = language_model()
    with torch.no_grad():
        logits = lm(torch.tensor([PROMPTS[0] + generated])).logits[0, len(PROMPTS[0]) - 1 : -1]
    expected = torch.log_softmax(logits, dim=-1)[torch.arange(len(generated)), generated]
    assert [token.token for token in recorded.tokens] == generated
    assert [token.logprob for token in recorded.tokens] == pytest.approx(
        expected.tolist(), abs=1e-4
    )
    assert {token.most_likely for token in recorded.tokens} == {()}


@pytest.mark.parametrize(("num_gpus", "share"), [(0.25, CACHE_SHARE / 4), (1, CACHE_SHARE)])
def test_the_cache_leaves_gpu_memory_for_another_version_and_other_replicas(
    num_gpus: float, share: float
) -> None:
    from tailorbird.models.generation import batching_config

    assert batching_config("cuda", **cache_options(num_gpus)).max_memory_percent == share
    assert cache_options(0) == {}
