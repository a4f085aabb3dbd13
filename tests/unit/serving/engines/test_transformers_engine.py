"""Answers of the transformers engine, with a tiny model with random weights that can write any
text.

`test_vllm_engine` runs the tests with `engine`, `loop` and `reference` with vLLM too.
"""

import asyncio
import gc
import threading
import weakref
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter

from serving.engines.base_chat import ChatEngine, GenerationRequest, PartialAnswer, Sampling
from serving.engines.transformers_engine import CACHE_SHARE, TransformersEngine, cache_options
from serving.http.schemas import RequestError
from serving.limits import FairSlots
from serving.replica.generation import partial_answers, whole_answer
from tailorbird.config.formats.response_format import (
    ChoiceFormat,
    ResponseFormat,
    TextFormat,
)
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import Answer, answer_prompts, batching_config
from tailorbird.models.grammar import compiler
from tailorbird.models.grammar.compiler import FormatError, grammar_for, grammar_of
from tailorbird.models.grammar.matcher import TOO_SLOW, AnswerMatcher
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import Prompting
from tests.unit.byte_level import language_model, tokenizer

TOKENIZER = tokenizer()
LIMIT = 60
PROMPTS = [
    prompt_tokens((("user", text),), tokenizer=TOKENIZER, system=None)
    for text in ("how old is Jane", "x", "the code of Fear of flying", "yes or no")
]
SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "code": {"type": "string", "pattern": "^[A-Z][0-9]{2}$"},
    },
    "required": ["ok", "age", "code"],
}
SHORT_TEXT = {
    "type": "object",
    "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 12}},
    "required": ["a"],
}
FORMATS: TypeAdapter[Any] = TypeAdapter(ResponseFormat)
PERSON = FORMATS.validate_python({"type": "json_schema", "json_schema": {"schema": SCHEMA}})
TEXT = FORMATS.validate_python({"type": "json_schema", "json_schema": {"schema": SHORT_TEXT}})
ANY = TextFormat(type="text")


def choice(*options: str) -> ChoiceFormat:
    return ChoiceFormat(type="choice", choice=options)


CHOICE = choice("yes", "no", "not sure")
IN_CHOICE = Prompting(system=None, max_new_tokens=LIMIT, response_format=CHOICE)


def started(lm: Any = None) -> TransformersEngine:
    """Return an engine for a version whose answers have the format `CHOICE`."""
    version: Any = SimpleNamespace(name="task", version="v", digest="d")
    model = ChatModel(lm or language_model())
    loaded = LoadedChat(model=model, tokenizer=TOKENIZER, prompting=IN_CHOICE, version=version)
    return TransformersEngine(loaded, max_batch_size=8)


@contextmanager
def running(lm: Any = None) -> Iterator[TransformersEngine]:
    engine = started(lm)
    try:
        yield engine
    finally:
        engine.end()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Return the event loop in which the tests use the engine."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with running() as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> Any:
    """Return the model with which the evaluation answers."""
    return language_model()


def request_of(engine: ChatEngine, prompt: list[int], **options: Any) -> GenerationRequest:
    """Return the request for a greedy answer in the format of the version."""
    fields: dict[str, Any] = {
        "max_new_tokens": LIMIT,
        "sampling": sampled(0, temperature=0.0),
        "stops": (),
    }
    return GenerationRequest(engine=engine, prompt=prompt, **(fields | options))


async def pieces(
    engine: ChatEngine, prompt: list[int], *, streaming: bool = False, **options: Any
) -> list[PartialAnswer]:
    """Return the parts of an answer."""
    request = request_of(engine, prompt, **options)
    async with aclosing(partial_answers(request, streaming=streaming)) as answers:
        return [answer async for answer in answers]


async def last(engine: ChatEngine, prompt: list[int], **options: Any) -> PartialAnswer:
    return (await pieces(engine, prompt, **options))[-1]


async def together(*works: Awaitable[PartialAnswer]) -> list[PartialAnswer]:
    return await asyncio.gather(*works)


def sampled(seed: int, *, temperature: float = 1.0) -> Sampling:
    return Sampling(temperature=temperature, top_p=0.95, seed=seed)


def evaluated(lm: Any, format: Any) -> list[Answer]:
    """Return the answers of the evaluation."""
    grammar = None if format is ANY else grammar_for(format, lm=lm, tokenizer=TOKENIZER)
    return answer_prompts(
        lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id, grammar=grammar
    )


def check_greedy(
    engine: ChatEngine,
    loop: asyncio.Runner,
    lm: Any,
    *,
    formats: tuple[Any, ...] = (ANY,),
    streaming: bool = False,
) -> None:
    """Check that concurrent answers and their log-probabilities are those of the evaluation."""
    works = list[Awaitable[PartialAnswer]]()
    expected = list[Answer]()
    options: dict[str, Any] = {"num_likely": 3, "streaming": streaming}
    for format in formats:
        expected += evaluated(lm, format)
        works += [last(engine, prompt, format=format, **options) for prompt in PROMPTS]
    for served, answer in zip(loop.run(together(*works)), expected, strict=True):
        assert served.text == TOKENIZER.decode(answer.tokens, skip_special_tokens=True).strip()
        assert (served.finish_reason == "stop") == answer.finished
        assert served.logprobs is not None
        logprobs = [token.generated.logprob for token in served.logprobs]
        assert logprobs == pytest.approx(answer.logprobs, abs=1e-3)


@pytest.mark.parametrize("streaming", [True, False])
def test_greedy_answers_of_all_formats_in_one_batch_equal_those_of_the_evaluation(
    engine: ChatEngine, loop: asyncio.Runner, reference: Any, streaming: bool
) -> None:
    formats = (ANY, PERSON, CHOICE)
    check_greedy(engine, loop, reference, formats=formats, streaming=streaming)
    assert loop.run(last(engine, PROMPTS[0])).text in CHOICE.choice  # the format of the version
    parts = loop.run(pieces(engine, PROMPTS[1], format=PERSON, streaming=streaming))
    assert (len(parts) > 1) == streaming


@pytest.mark.parametrize("format", [CHOICE, choice("<user>", "<system>", "a <pad>")])
def test_sampled_choices_are_exactly_the_options(
    engine: ChatEngine, loop: asyncio.Runner, format: ChoiceFormat
) -> None:
    works = [last(engine, PROMPTS[3], sampling=sampled(seed), format=format) for seed in range(40)]
    answers = loop.run(together(*works))
    assert {answer.text for answer in answers} == set(format.choice)
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_log_probabilities_contain_only_tokens_that_the_format_allows(
    engine: ChatEngine, loop: asyncio.Runner
) -> None:
    answer = loop.run(last(engine, PROMPTS[2], format=CHOICE, num_likely=20))
    assert answer.logprobs
    for token in answer.logprobs:
        probabilities = torch.tensor([likely.logprob for likely in token.most_likely]).exp()
        assert token.generated == token.most_likely[0]
        assert float(probabilities.sum()) == pytest.approx(1, abs=1e-5)
    for likely in answer.logprobs[0].most_likely:
        assert any(option.startswith(likely.token) for option in CHOICE.choice)


def test_a_seed_gives_the_same_answer_alone_and_in_a_batch(
    engine: ChatEngine, loop: asyncio.Runner
) -> None:
    free: dict[str, Any] = {"format": ANY}
    options = [free | {"sampling": sampled(2**64 - seed)} for seed in range(1, 6)]
    alone = loop.run(last(engine, PROMPTS[1], **options[0]))
    works = [last(engine, PROMPTS[1], **each) for each in [free, options[0], *options]]
    greedy, *answers = loop.run(together(*works))
    assert answers[0] == answers[1] == alone
    assert len({answer.text for answer in answers}) == 5
    assert greedy == loop.run(last(engine, PROMPTS[1], **free))


def test_log_probabilities_of_sampled_tokens_are_those_before_the_temperature(
    engine: ChatEngine, loop: asyncio.Runner
) -> None:
    sampling = sampled(1, temperature=3.0)
    works = [
        last(engine, PROMPTS[0], format=ANY, num_likely=5, **options)
        for options in ({}, {"sampling": sampling})
    ]
    greedy, warm = [answer.logprobs for answer in loop.run(together(*works))]
    assert greedy is not None
    assert warm is not None
    for token, logprob in greedy[0].most_likely:
        assert dict(warm[0].most_likely)[token] == pytest.approx(logprob, abs=1e-4)
    assert any(token.generated != token.most_likely[0] for token in warm)


async def cancel(engine: ChatEngine) -> None:
    """Cancel an answer during a stream, and wait for another one."""
    request = request_of(engine, PROMPTS[0], max_new_tokens=200, format=PERSON, num_likely=1)
    async with aclosing(partial_answers(request, streaming=True)) as answers:
        await anext(answers)
    await last(engine, PROMPTS[1])


def test_a_cancelled_answer_leaves_the_engine(
    engine: TransformersEngine, loop: asyncio.Runner
) -> None:
    loop.run(cancel(engine))
    loop.run(last(engine, PROMPTS[1]))
    scheduler = engine._manager.batch_processor.scheduler
    assert not scheduler.active_requests
    assert not scheduler.waiting_requests
    assert not engine._manager.output_router.result_handlers
    assert not engine._sampler.matchers
    assert not engine._sampler.recorded


async def check_unload(make: Callable[[], ChatEngine]) -> None:
    """Unload an engine during an answer, and check that the answer is finished. `make` runs in the
    event loop."""
    old = make()
    answering = asyncio.create_task(last(old, PROMPTS[0], format=ANY))
    while not old.num_active:
        await asyncio.sleep(0)
    old.unload()
    assert old._ending is None
    assert (await answering).finish_reason is not None
    while old._ending is None:
        await asyncio.sleep(0)
    await old._ending
    assert not old.running
    with pytest.raises(RequestError) as caught:
        await last(old, PROMPTS[0])
    assert caught.value.status == 503


def test_an_unloaded_engine_finishes_its_answers_and_then_ends_and_releases_its_model() -> None:
    models = []

    def make() -> TransformersEngine:
        lm = language_model()
        models.append(weakref.ref(lm))
        return started(lm)

    asyncio.run(check_unload(make))
    gc.collect()
    assert [model() for model in models] == [None]


def test_the_reason_of_a_failed_pass_is_the_cause_of_the_error_and_not_in_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise RuntimeError("out of memory for s3://models/task")

    lm: Any = language_model()
    with running(lm) as engine:
        monkeypatch.setattr(lm, "forward", fail)
        with pytest.raises(RequestError) as caught:
            asyncio.run(last(engine, PROMPTS[0]))
    assert caught.value.status == 500
    assert "s3://models/task" not in caught.value.message
    assert "out of memory for s3://models/task" in caught.value.reason


@pytest.mark.parametrize(("num_gpus", "share"), [(0.25, CACHE_SHARE / 4), (1, CACHE_SHARE)])
def test_the_cache_leaves_gpu_memory_for_another_version_and_other_replicas(
    num_gpus: float, share: float
) -> None:
    assert batching_config("cuda", **cache_options(num_gpus)).max_memory_percent == share
    assert cache_options(0) == {}


def test_a_format_that_cannot_be_compiled_is_an_error_of_the_load_or_a_400_before_the_answer(
    engine: TransformersEngine, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_format: object) -> object:
        raise FormatError("the format is not supported: too long")

    # Formats of clients do not replace that of the version.
    monkeypatch.setattr(compiler, "MAX_GRAMMARS", 1)
    for format in (PERSON, choice("one", "two")):
        loop.run(last(engine, PROMPTS[0], format=format))
    monkeypatch.setattr(compiler, "grammar_of", fail)
    assert loop.run(last(engine, PROMPTS[0])).text in CHOICE.choice
    with pytest.raises(RequestError) as caught:
        loop.run(last(engine, PROMPTS[0], format=choice("new", "format")))
    assert (caught.value.status, caught.value.param) == (400, "response_format")
    with pytest.raises(FormatError):
        started()


def test_a_compilation_holds_no_slot_of_generation_and_does_not_stop_a_shadow(
    engine: TransformersEngine, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    go = threading.Event()

    def slow(format: Any) -> Any:
        begun.set()
        assert go.wait(30)
        return grammar_of(format)

    monkeypatch.setattr(compiler, "grammar_of", slow)
    monkeypatch.setattr(engine, "slots", FairSlots(1))
    format = choice("compiled slowly", "or not")

    async def scenario() -> None:
        waiting = asyncio.create_task(whole_answer(request_of(engine, PROMPTS[0], format=format)))
        assert await asyncio.to_thread(begun.wait, 30)
        assert engine.num_active == 0
        assert (await last(engine, PROMPTS[0])).finish_reason is not None
        assert engine._compiling.budget.held.total() == 1
        go.set()
        assert (await waiting).text in format.choice

    try:
        loop.run(scenario())
    finally:
        go.set()


def test_a_format_that_turns_out_too_slow_ends_its_answers_but_no_others(
    engine: TransformersEngine, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    format = choice("a long option", "a long one")
    grammar = engine._compiler.compile(format)

    async def fail() -> None:
        request = request_of(engine, PROMPTS[0], format=format)
        async with aclosing(partial_answers(request, streaming=True)) as answers:
            await anext(answers)
            grammar.fault = TOO_SLOW
            async for _ in answers:
                pass

    for work in (fail(), last(engine, PROMPTS[0], format=format)):
        with pytest.raises(RequestError) as caught:
            loop.run(work)
        assert caught.value.status == 400
    limits = {"max_mask_s": -1.0, "clock": lambda: 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(AnswerMatcher.__init__, "__kwdefaults__", limits)
        with pytest.raises(RequestError) as caught:
            loop.run(last(engine, PROMPTS[0]))
    assert caught.value.status == 500  # a fault in the format of the version
    assert loop.run(last(engine, PROMPTS[0])).text in CHOICE.choice
