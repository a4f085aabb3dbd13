"""Answers in a response format by the transformers engine, with a tiny model with random
weights.

`test_vllm_formats` runs the tests with `engine`, `loop` and `reference` with vLLM too.
"""

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import aclosing, contextmanager
from types import SimpleNamespace
from typing import Any

import jsonschema
import pytest
import torch
from pydantic import TypeAdapter
from starlette.testclient import TestClient

from serving.engines.base_chat import ChatEngine, GenerationRequest, PartialAnswer, Sampling
from serving.engines.language_model import Likelihoods
from serving.engines.sampling import Sampler
from serving.engines.transformers_engine import TransformersEngine
from serving.http.schemas import RequestError
from serving.limits import FairSlots
from serving.replica.chat import Chat
from serving.replica.generation import whole_answer
from tailorbird.config.formats.response_format import (
    ChoiceFormat,
    JsonObjectFormat,
    ResponseFormat,
    TextFormat,
)
from tailorbird.config.serving import ServingConfig
from tailorbird.data.chat_template import prompt_tokens
from tailorbird.models.causal_lm import ChatModel
from tailorbird.models.generation import Answer, answer_prompts
from tailorbird.models.grammar import compiler
from tailorbird.models.grammar.compiler import FormatError, grammar_for, grammar_of
from tailorbird.models.grammar.matcher import TOO_SLOW, AnswerMatcher
from tailorbird.models.loading import LoadedChat
from tailorbird.registry.versions import Prompting
from tests.unit.byte_level import language_model, tokenizer
from tests.unit.serving.http.application import application

TOKENIZER, LIMIT = tokenizer(), 60
PROMPTS = [
    prompt_tokens((("user", text),), tokenizer=TOKENIZER, system=None)
    for text in ("how old is Jane", "x", "the code of Fear of flying", "yes or no")
]
GREEDY = Sampling(temperature=0.0, top_p=1.0, seed=0)
SCHEMA = {
    "type": "object",
    "properties": {
        "ok": {"type": "boolean"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "code": {"type": "string", "pattern": "^[A-Z][0-9]{2}$"},
    },
    "required": ["ok", "age", "code"],
}
FORMATS: TypeAdapter[Any] = TypeAdapter(ResponseFormat)
PERSON = FORMATS.validate_python({"type": "json_schema", "json_schema": {"schema": SCHEMA}})
SHORT_TEXT = {
    "type": "object",
    "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 12}},
    "required": ["a"],
}
TEXT = FORMATS.validate_python({"type": "json_schema", "json_schema": {"schema": SHORT_TEXT}})
CHOICE = ChoiceFormat(type="choice", choice=("yes", "no", "not sure"))
SPECIAL_TOKENS = ChoiceFormat(type="choice", choice=("<user>", "<system>", "a <pad>"))
OTHER = ChoiceFormat(type="choice", choice=("one", "two"))
ANY = TextFormat(type="text")
IN_CHOICE = Prompting(system=None, max_new_tokens=LIMIT, response_format=CHOICE)


@contextmanager
def started() -> Iterator[TransformersEngine]:
    """Return an engine for a version whose answers have the format `CHOICE`."""
    version: Any = SimpleNamespace(name="task", version="v", digest="d")
    loaded = LoadedChat(ChatModel(language_model()), TOKENIZER, IN_CHOICE, version)
    engine = TransformersEngine(loaded, max_batch_size=8)
    try:
        yield engine
    finally:
        engine._manager.destroy()


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Return the event loop in which the tests use the engine."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def engine() -> Iterator[TransformersEngine]:
    with started() as engine:
        yield engine


@pytest.fixture(scope="module")
def reference() -> Any:
    """Return the model with which the evaluation answers."""
    return language_model()


async def pieces(
    engine: ChatEngine, prompt: list[int], *, streaming: bool = False, **options: Any
) -> Any:
    """Return the parts of an answer."""
    fields: dict[str, Any] = {"max_new_tokens": LIMIT, "sampling": GREEDY, "stops": ()} | options
    request = GenerationRequest(engine, prompt, **fields)
    async with aclosing(engine.answers(request, streaming=streaming)) as answers:
        return [answer async for answer in answers]


async def last(engine: ChatEngine, prompt: list[int], **options: Any) -> PartialAnswer:
    answer: PartialAnswer = (await pieces(engine, prompt, **options))[-1]
    return answer


async def together(*works: Any) -> Any:
    return await asyncio.gather(*works)


def sampled(seed: int) -> Sampling:
    return Sampling(temperature=1.0, top_p=0.95, seed=seed)


def evaluated(lm: Any, format: Any) -> list[Answer]:
    """Return the answers of the evaluation."""
    grammar = grammar_for(format, lm=lm, tokenizer=TOKENIZER)
    return answer_prompts(
        lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id, grammar=grammar
    )


@pytest.mark.parametrize(
    ("format", "schema"),
    [
        (PERSON, SCHEMA),
        (TEXT, SHORT_TEXT),
        (JsonObjectFormat(type="json_object"), {"type": "object"}),
    ],
    ids=["fields", "text", "object"],
)
def test_sampled_answers_satisfy_the_schema_or_are_cut(
    engine: ChatEngine, loop: asyncio.Runner, format: Any, schema: dict[str, Any]
) -> None:
    works = [
        last(engine, PROMPTS[seed % 4], sampling=sampled(seed), format=format) for seed in range(24)
    ]
    answers = loop.run(together(*works))
    finished = [answer for answer in answers if answer.finish_reason == "stop"]
    assert len({answer.text for answer in finished}) > 4
    for answer in finished:
        jsonschema.validate(json.loads(answer.text), schema)
    assert all(answer.num_tokens == LIMIT for answer in answers if answer.finish_reason == "length")


@pytest.mark.parametrize("format", [CHOICE, SPECIAL_TOKENS], ids=["words", "special tokens"])
def test_sampled_choices_are_exactly_the_options(
    engine: ChatEngine, loop: asyncio.Runner, format: ChoiceFormat
) -> None:
    works = [last(engine, PROMPTS[3], sampling=sampled(seed), format=format) for seed in range(40)]
    answers = loop.run(together(*works))
    assert {answer.text for answer in answers} == set(format.choice)
    assert {answer.finish_reason for answer in answers} == {"stop"}


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("format", [PERSON, CHOICE], ids=["schema", "choice"])
def test_greedy_answers_and_their_log_probabilities_equal_those_of_the_evaluation(
    engine: ChatEngine, loop: asyncio.Runner, reference: Any, format: Any, streaming: bool
) -> None:
    works = [
        last(engine, prompt, format=format, num_likely=3, streaming=streaming) for prompt in PROMPTS
    ]
    expected = evaluated(reference, format)
    for served, answer in zip(loop.run(together(*works)), expected, strict=True):
        assert served.text == TOKENIZER.decode(answer.tokens, skip_special_tokens=True).strip()
        assert (served.finish_reason == "stop") == answer.finished
        logprobs = [token.generated.logprob for token in served.logprobs]
        assert logprobs == pytest.approx(answer.logprobs, abs=1e-3)


def test_the_format_of_the_version_is_the_default_and_a_request_can_replace_it(
    engine: ChatEngine, loop: asyncio.Runner
) -> None:
    works = [last(engine, PROMPTS[0], format=format) for format in (None, PERSON, ANY)]
    default, person, text = loop.run(together(*works))
    assert default.text in CHOICE.choice
    assert person.text.startswith("{")
    assert text.text not in CHOICE.choice


def test_the_pieces_of_a_stream_are_the_whole_answer_and_max_tokens_or_a_stop_text_ends_it(
    engine: ChatEngine, loop: asyncio.Runner
) -> None:
    parts = loop.run(pieces(engine, PROMPTS[1], streaming=True, format=PERSON))
    assert len(parts) > 1
    assert parts[-1] == loop.run(last(engine, PROMPTS[1], format=PERSON))
    cut = loop.run(last(engine, PROMPTS[1], format=PERSON, max_new_tokens=5))
    assert (cut.finish_reason, cut.num_tokens) == ("length", 5)
    stopped = loop.run(last(engine, PROMPTS[1], format=PERSON, stops=(":",), streaming=True))
    assert stopped.finish_reason == "stop"
    assert stopped.text.endswith('"ok"')


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


def fail_to_compile(_format: object) -> object:
    raise FormatError("the format is not supported: too long")


def test_the_format_of_the_version_is_compiled_at_the_load_and_formats_of_clients_do_not_replace_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiler, "MAX_GRAMMARS", 1)
    with started() as engine:
        works = [last(engine, PROMPTS[0], format=format) for format in (PERSON, OTHER)]
        asyncio.run(together(*works))
        monkeypatch.setattr(compiler, "grammar_of", fail_to_compile)
        answer = asyncio.run(last(engine, PROMPTS[0]))
    assert answer.text in CHOICE.choice
    with pytest.raises(FormatError), started():
        raise AssertionError


def test_scores_and_log_probabilities_of_rows_without_a_format_are_the_same_to_the_bit() -> None:
    grammar = grammar_for(CHOICE, lm=language_model(), tokenizer=TOKENIZER)
    assert grammar is not None
    torch.manual_seed(0)
    logits = torch.randn(4, language_model().config.vocab_size)

    def passed(matchers: dict[str, AnswerMatcher]) -> tuple[torch.Tensor, list[Any]]:
        """Return the scores and the recorded log-probabilities of a pass; rows 0 and 1 are
        sampled."""
        sampler, recorded = Sampler(), {str(row): Likelihoods(5) for row in range(4)}
        sampler.matchers, sampler.recorded = matchers, recorded
        states = [
            SimpleNamespace(
                request_id=str(row),
                logit_processor_kwargs=sampled(row)._asdict() if row < 2 else {},
                initial_tokens=[5, 6, 7],
                generated_tokens=[],
            )
            for row in range(4)
        ]
        args = sampler.prepare_tensor_args([SimpleNamespace(state=state) for state in states])
        scores = sampler(logits.clone(), args)
        return scores, [likelihoods.tokens for likelihoods in recorded.values()]

    plain, plain_logprobs = passed({})
    mixed, mixed_logprobs = passed({row: AnswerMatcher(grammar) for row in "13"})
    for row in (0, 2):
        assert torch.equal(mixed[row], plain[row])
        assert mixed_logprobs[row] == plain_logprobs[row]
    for row in (1, 3):
        assert not torch.equal(mixed[row], plain[row])
        assert TOKENIZER.decode([int(mixed[row].argmax())])[0] in "yn"


def test_a_cancelled_answer_leaves_no_state(engine: TransformersEngine) -> None:
    async def cancel() -> None:
        request = GenerationRequest(engine, PROMPTS[0], 200, GREEDY, (), format=PERSON)
        async with aclosing(engine.answers(request, streaming=True)) as answers:
            await anext(answers)

    asyncio.run(cancel())
    assert not engine._sampler.matchers


def test_a_format_that_cannot_be_compiled_is_a_400_before_the_answer(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler, "grammar_of", fail_to_compile)
    with pytest.raises(RequestError) as caught:
        asyncio.run(pieces(engine, PROMPTS[0], format=OTHER))
    assert (caught.value.status, caught.value.param) == (400, "response_format")


@pytest.fixture
def slow_compilation(
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Compilations that wait for the second event, after they have set the first one."""
    started, go = threading.Event(), threading.Event()

    def slow(format: Any) -> Any:
        started.set()
        assert go.wait(30)
        return grammar_of(format)

    monkeypatch.setattr(compiler, "grammar_of", slow)
    yield started, go
    go.set()


@pytest.mark.parametrize("disconnected", [True, False])
def test_a_compilation_holds_no_slot_of_generation_and_does_not_stop_a_shadow(
    engine: TransformersEngine,
    slow_compilation: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
    disconnected: bool,
) -> None:
    started, go = slow_compilation
    monkeypatch.setattr(engine, "slots", FairSlots(1))
    format = ChoiceFormat(type="choice", choice=("compiled slowly", str(disconnected)))
    request = GenerationRequest(engine, PROMPTS[0], LIMIT, GREEDY, ())

    async def scenario() -> None:
        waiting = asyncio.create_task(whole_answer(request._replace(format=format)))
        assert await asyncio.to_thread(started.wait, 30)
        assert engine.num_active == 0
        if disconnected:
            waiting.cancel()
            await asyncio.wait([waiting], timeout=10)
            assert waiting.cancelled()
        assert (await whole_answer(request)).finish_reason is not None
        assert engine._compiling.budget.held.total() == 1
        go.set()
        if not disconnected:
            assert (await waiting).text in format.choice

    asyncio.run(scenario())


def test_a_format_that_turns_out_too_slow_ends_its_answers_but_no_others(
    engine: TransformersEngine,
) -> None:
    format = ChoiceFormat(type="choice", choice=("slow", "slower"))
    engine._compiler.compile(format).fault = TOO_SLOW
    with pytest.raises(RequestError) as caught:
        asyncio.run(pieces(engine, PROMPTS[0], format=format))
    assert caught.value.status == 400
    assert asyncio.run(last(engine, PROMPTS[0], format=CHOICE)).text in CHOICE.choice


def test_a_format_that_fails_during_an_answer_is_an_error(engine: TransformersEngine) -> None:
    format = ChoiceFormat(type="choice", choice=("a long option", "a long one"))

    async def fail() -> None:
        request = GenerationRequest(engine, PROMPTS[0], LIMIT, GREEDY, (), format=format)
        async with aclosing(engine.answers(request, streaming=True)) as answers:
            await anext(answers)
            grammar = engine._compiler.known(format)
            assert grammar is not None
            grammar.fault = TOO_SLOW
            async for _ in answers:
                pass

    with pytest.raises(RequestError):
        asyncio.run(fail())


def test_a_fault_in_the_format_of_the_version_fails_one_answer_with_500(
    engine: TransformersEngine, loop: asyncio.Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_mask_s": -1.0, "clock": lambda: 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(AnswerMatcher.__init__, "__kwdefaults__", limits)
        with pytest.raises(RequestError) as caught:
            loop.run(last(engine, PROMPTS[0]))
    assert caught.value.status == 500
    assert loop.run(last(engine, PROMPTS[0])).text in CHOICE.choice


def test_the_route_answers_in_the_format_of_the_request_complete_and_streamed(
    engine: TransformersEngine,
) -> None:
    app = application(Chat, ServingConfig(), engine)
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": "yes or no"}],
        "max_tokens": LIMIT,
    }
    body |= {"response_format": {"type": "choice", "choice": list(CHOICE.choice)}}
    route = "/v1/chat/completions"
    with TestClient(app, base_url="http://127.0.0.1") as client:
        whole = client.post(route, json=body | {"logprobs": True, "top_logprobs": 20}).json()[
            "choices"
        ][0]
        events = client.post(route, json=body | {"stream": True}).text.split("\n\n")
        lookaround = {"schema": {"type": "string", "pattern": "(?=a)"}}
        refused = client.post(
            route,
            json=body
            | {
                "stream": True,
                "response_format": {"type": "json_schema", "json_schema": lookaround},
            },
        )
    assert whole["message"]["content"] in CHOICE.choice
    assert whole["finish_reason"] == "stop"
    assert all(
        -100 < likely["logprob"] <= 0
        for token in whole["logprobs"]["content"]
        for likely in token["top_logprobs"]
    )
    deltas = [
        json.loads(event.removeprefix("data: "))["choices"][0]["delta"]
        for event in events
        if "delta" in event
    ]
    assert "".join(delta.get("content", "") for delta in deltas) == whole["message"]["content"]
    assert refused.status_code == 400
