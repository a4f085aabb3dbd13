"""Answers in a response format by vLLM, with a tiny model with random weights that can write any
text."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

from serving.batch_jobs.vllm_model import VllmModel
from serving.engines.vllm_engine import VllmEngine, VllmPool
from serving.http.schemas import RequestError
from tailorbird.config.formats.response_format import ChoiceFormat, JsonObjectFormat
from tailorbird.models.generation import Answer, answer_prompts
from tailorbird.models.grammar.compiler import grammar_for
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    VersionConfig,
    register,
    write_config,
)
from tests import small_chat
from tests.unit.byte_level import language_model
from tests.unit.serving.engines.test_vllm_engine import CONFIG, WIDTH, in_ray, load, needs_vllm
from tests.unit.serving.replica.test_structured_outputs import (
    ANY,
    CHOICE,
    FORMATS,
    LIMIT,
    PERSON,
    PROMPTS,
    SCHEMA,
    TOKENIZER,
    first_tokens_of_choice,
    last,
    pieces,
    sampled,
    together,
)

__all__ = ["in_ray"]
pytestmark = needs_vllm
NAMES = ChoiceFormat(
    type="choice", choice=("<user>", "<system>", "a <pad>")
)  # names of special tokens
SHORT_TEXT = {
    "type": "object",
    "properties": {"a": {"type": "string", "minLength": 3, "maxLength": 12}},
    "required": ["a"],
}
TEXT = FORMATS.validate_python({"type": "json_schema", "json_schema": {"schema": SHORT_TEXT}})


def registered(folder: Path, lm: Any, tokenizer: Any, **prompting: Any) -> ModelVersion:
    """Return a registered version on a base model of its own."""
    lm.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = VersionConfig(
        kind="zero_shot",
        classes=(),
        base_model=(folder / "base").as_uri(),
        max_length=512,
        dtype="float32",
        code="s3://none.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        prompting=Prompting(system=None, max_new_tokens=LIMIT, **prompting),
    )
    (folder / "version").mkdir()
    write_config(folder / "version", config)
    return register((folder / "registry").as_uri(), folder / "version")


def evaluated(format: Any) -> list[Answer]:
    """Return the answers of the evaluation."""
    lm = language_model(width=WIDTH)
    grammar = grammar_for(format, lm=lm, tokenizer=TOKENIZER)
    return answer_prompts(
        lm, PROMPTS, max_new_tokens=LIMIT, end_id=TOKENIZER.eos_token_id, grammar=grammar
    )


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.Runner]:
    """Return the event loop in which the tests use the engines."""
    with asyncio.Runner() as runner:
        yield runner


@pytest.fixture(scope="module")
def own_format(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """Return a version whose answers have the format `CHOICE`."""
    lm = language_model(width=WIDTH)
    return registered(tmp_path_factory.mktemp("own"), lm, TOKENIZER, response_format=CHOICE)


@pytest.fixture(scope="module")
def engine(in_ray: None, own_format: ModelVersion) -> Iterator[VllmEngine]:  # noqa: ARG001  starts Ray
    started = load(VllmPool(CONFIG), own_format)
    yield started
    started.end()


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("format", [PERSON, CHOICE], ids=["schema", "choice"])
def test_greedy_answers_and_their_log_probabilities_equal_those_of_the_evaluation(
    engine: VllmEngine, loop: asyncio.Runner, format: Any, streaming: bool
) -> None:
    works = [
        last(engine, prompt, format=format, num_likely=3, streaming=streaming) for prompt in PROMPTS
    ]
    for served, wanted in zip(loop.run(together(*works)), evaluated(format), strict=True):
        assert served.text == TOKENIZER.decode(wanted.tokens, skip_special_tokens=True).strip()
        assert (served.finish_reason == "stop") == wanted.finished
        logprobs = [token.generated.logprob for token in served.logprobs]
        torch.testing.assert_close(
            torch.tensor(logprobs), torch.tensor(wanted.logprobs), atol=1e-3, rtol=0
        )


def test_sampled_answers_satisfy_the_schema_or_are_cut(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    for format, schema in ((PERSON, SCHEMA), (TEXT, SHORT_TEXT)):
        works = [
            last(engine, PROMPTS[seed % 4], sampling=sampled(seed), format=format)
            for seed in range(24)
        ]
        answers = loop.run(together(*works))
        finished = [answer for answer in answers if answer.finish_reason == "stop"]
        assert len({answer.text for answer in finished}) > 4
        for answer in finished:
            jsonschema.validate(json.loads(answer.text), schema)
        assert all(
            answer.num_tokens == LIMIT for answer in answers if answer.finish_reason == "length"
        )


@pytest.mark.parametrize("format", [CHOICE, NAMES], ids=["words", "names of special tokens"])
def test_sampled_choices_are_exactly_the_options(
    engine: VllmEngine, loop: asyncio.Runner, format: ChoiceFormat
) -> None:
    works = [last(engine, PROMPTS[3], sampling=sampled(seed), format=format) for seed in range(40)]
    answers = loop.run(together(*works))
    assert {answer.text for answer in answers} == set(format.choice)
    assert {answer.finish_reason for answer in answers} == {"stop"}


def test_an_object_without_a_schema_is_json(engine: VllmEngine, loop: asyncio.Runner) -> None:
    format = JsonObjectFormat(type="json_object")
    works = [
        last(engine, PROMPTS[seed % 4], sampling=sampled(seed), format=format) for seed in range(16)
    ]
    finished = [
        answer.text for answer in loop.run(together(*works)) if answer.finish_reason == "stop"
    ]
    assert finished
    assert all(isinstance(json.loads(text), dict) for text in finished)


def test_the_format_of_the_version_is_the_default_and_a_request_can_replace_it(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    works = [last(engine, PROMPTS[0], format=format) for format in (None, PERSON, ANY)]
    default, person, text = loop.run(together(*works))
    assert default.text in CHOICE.choice
    assert person.text.startswith("{")
    assert text.text not in CHOICE.choice


def test_the_pieces_of_a_stream_are_the_whole_answer_and_max_tokens_or_a_stop_text_ends_it(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    parts = loop.run(pieces(engine, PROMPTS[1], streaming=True, format=PERSON))
    whole = loop.run(last(engine, PROMPTS[1], format=PERSON))
    assert len(parts) > 1
    assert parts[-1] == whole
    cut = loop.run(last(engine, PROMPTS[1], format=PERSON, max_new_tokens=5))
    assert (cut.finish_reason, cut.num_tokens) == ("length", 5)
    stopped = loop.run(last(engine, PROMPTS[1], format=PERSON, stops=(":",), streaming=True))
    assert stopped.finish_reason == "stop"
    assert stopped.text.endswith('"ok"')


def test_log_probabilities_contain_only_tokens_that_the_format_allows(
    engine: VllmEngine, loop: asyncio.Runner
) -> None:
    answer = loop.run(last(engine, PROMPTS[2], format=CHOICE, num_likely=20))
    assert first_tokens_of_choice(answer)


def test_a_batch_in_the_format_of_its_version_has_the_answers_and_log_probabilities_of_the_evaluation(
    own_format: ModelVersion, tmp_path: Path
) -> None:
    text = registered(tmp_path, language_model(width=WIDTH), TOKENIZER, response_format=TEXT)
    for version, format in ((own_format, CHOICE), (text, TEXT)):
        answers = VllmModel(version, config=CONFIG).answer(PROMPTS)
        for answer, wanted in zip(answers, evaluated(format), strict=True):
            assert (answer.tokens, answer.finished) == (wanted.tokens, wanted.finished)
            assert answer.logprobs == pytest.approx(wanted.logprobs, abs=1e-3)


@pytest.mark.usefixtures("in_ray")
def test_a_tokenizer_without_the_characters_of_a_format_is_an_error_of_one_answer(
    loop: asyncio.Runner, tmp_path: Path
) -> None:
    lm = small_chat.language_model(width=WIDTH)
    version = registered(tmp_path, lm, small_chat.tokenizer())
    letters = load(VllmPool(CONFIG), version)
    prompt = letters.chat_prompt((("user", "abc"),), max_new_tokens=LIMIT)
    try:
        with pytest.raises(RequestError) as caught:
            loop.run(last(letters, prompt, format=PERSON))
        assert caught.value.status == 400
        options = ("dog", "cat")
        format = ChoiceFormat(type="choice", choice=options)
        assert loop.run(last(letters, prompt, format=format)).text in options
    finally:
        letters.end()
