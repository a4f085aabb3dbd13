"""Answers in a response format by vLLM, with a tiny model with random weights that can write any
text."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.batch_jobs.vllm_model import VllmModel
from serving.engines.vllm_engine import VllmEngine, VllmPool
from serving.http.schemas import RequestError
from tailorbird.config.formats.response_format import ChoiceFormat
from tailorbird.registry.versions import (
    ModelVersion,
    Prompting,
    register,
    write_config,
)
from tests import small_chat
from tests.build import version_config
from tests.unit.byte_level import language_model
from tests.unit.serving.engines.test_vllm_engine import CONFIG, WIDTH, in_ray, load, needs_vllm
from tests.unit.serving.replica import test_structured_outputs as shared
from tests.unit.serving.replica.test_structured_outputs import (
    CHOICE,
    LIMIT,
    PERSON,
    PROMPTS,
    TEXT,
    TOKENIZER,
    evaluated,
    last,
    loop,
)

__all__ = ["in_ray", "loop"]
pytestmark = needs_vllm

test_sampled_answers = shared.test_sampled_answers_satisfy_the_schema_or_are_cut
test_sampled_choices = shared.test_sampled_choices_are_exactly_the_options
test_greedy_answers = (
    shared.test_greedy_answers_and_their_log_probabilities_equal_those_of_the_evaluation
)
test_default_format = (
    shared.test_the_format_of_the_version_is_the_default_and_a_request_can_replace_it
)
test_streams = (
    shared.test_the_pieces_of_a_stream_are_the_whole_answer_and_max_tokens_or_a_stop_text_ends_it
)
test_log_probabilities = shared.test_log_probabilities_contain_only_tokens_that_the_format_allows


def registered(folder: Path, lm: Any, tokenizer: Any, **prompting: Any) -> ModelVersion:
    """Return a registered version on a base model of its own."""
    lm.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    config = version_config(
        base_model=(folder / "base").as_uri(),
        max_length=512,
        prompting=Prompting(system=None, max_new_tokens=LIMIT, **prompting),
    )
    (folder / "version").mkdir()
    write_config(folder / "version", config)
    return register((folder / "registry").as_uri(), folder / "version")


@pytest.fixture(scope="module")
def reference() -> Any:
    """Return the model with which the evaluation answers."""
    return language_model(width=WIDTH)


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


def test_a_batch_in_the_format_of_its_version_has_the_answers_and_log_probabilities_of_the_evaluation(
    own_format: ModelVersion, reference: Any, tmp_path: Path
) -> None:
    text = registered(tmp_path, reference, TOKENIZER, response_format=TEXT)
    for version, format in ((own_format, CHOICE), (text, TEXT)):
        answers = VllmModel(version, config=CONFIG).answer(PROMPTS)
        for answer, wanted in zip(answers, evaluated(reference, format), strict=True):
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
