"""Prompts of an engine with retrieved examples, and log-probabilities of its answers."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from typing import Any

from serving.engines.base_chat import GenerationRequest, PartialAnswer, Sampling
from serving.engines.language_model import Generation, LanguageModelEngine, Likelihood
from tailorbird.data.rows import Rows
from tailorbird.models.retrieval.index import RetrievalIndex, build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests.unit.serving.replica.fake_engine import TOKENIZER, FakeEngine

QUESTIONS = ("blue sky", "green leaf", "green grass", "red rose")
SHOWN = "<user>green grass</s><assistant>a2</s><user>green leaf</s><assistant>a1</s>"


def index_of(questions: tuple[str, ...] = QUESTIONS) -> RetrievalIndex:
    """Return an index whose answers are `a0`, `a1`, ..."""
    ids = tuple(str(number) for number in range(len(questions)))
    turns = tuple((("user", question),) for question in questions)
    rows = Rows(ids, questions, tuple(f"a{number}" for number in ids), conversations=turns)
    return build_index(rows, seed=0)


def engine_of(*, max_prompt_tokens: int = 200, max_length: int = 256) -> FakeEngine:
    retrieval = Retrieval(
        num_examples=2, max_prompt_tokens=max_prompt_tokens, index_sha256="0" * 64
    )
    prompting = Prompting(system="s", max_new_tokens=8, retrieval=retrieval)
    engine = FakeEngine("", prompting=prompting, index=index_of())
    engine.max_length = max_length
    return engine


def shown(engine: LanguageModelEngine, text: str, *, max_new_tokens: int = 8) -> str:
    prompt = engine.chat_prompt((("user", text),), max_new_tokens=max_new_tokens)
    return "".join(TOKENIZER.convert_ids_to_tokens(prompt))


def test_the_nearest_training_rows_are_in_the_prompt_and_the_nearest_is_last() -> None:
    assert (
        shown(engine_of(), "green leafs") == f"<system>s</s>{SHOWN}<user>green leafs</s><assistant>"
    )


def test_examples_that_leave_no_room_for_the_answer_are_omitted() -> None:
    plain = "<system>s</s><user>green leafs</s><assistant>"
    one = "<system>s</s><user>green leaf</s><assistant>a1</s><user>green leafs</s><assistant>"
    assert shown(engine_of(max_length=50), "green leafs") == one
    assert shown(engine_of(max_prompt_tokens=40), "green leafs") == one
    assert shown(engine_of(max_length=64), "green leafs", max_new_tokens=40) == plain
    assert (
        shown(engine_of(max_length=20), "green leafs", max_new_tokens=40) == plain
    )  # a later check rejects its length


class RecordingTokenizer:
    """A tokenizer that records the threads that decode single tokens."""

    def __init__(self) -> None:
        self.threads = set[int]()

    def __getattr__(self, name: str) -> Any:
        return getattr(TOKENIZER, name)

    def decode(self, tokens: list[int], **options: Any) -> Any:
        if not options:
            self.threads.add(threading.get_ident())
        return TOKENIZER.decode(tokens, **options)


class LikelyEngine(FakeEngine):
    """An engine that reports each token as certain."""

    async def generate(
        self, generation: Generation
    ) -> AsyncGenerator[tuple[list[int], bool], None]:
        assert generation.likelihoods is not None
        generation.likelihoods.add(Likelihood(token, 0.0, ((token, 0.0),)) for token in self.tokens)
        yield self.tokens, True


def test_the_event_loop_does_not_decode_the_tokens_of_log_probabilities() -> None:
    engine = LikelyEngine("blue sky")
    engine.tokenizer = tokenizer = RecordingTokenizer()

    async def answer() -> PartialAnswer:
        request = GenerationRequest(engine, [1], 8, Sampling(0.0, 1.0, 0), (), num_likely=1)
        (answer,) = [answer async for answer in engine.answers(request, streaming=False)]
        assert threading.get_ident() not in tokenizer.threads
        return answer

    logprobs = asyncio.run(answer()).logprobs
    assert logprobs is not None
    assert "".join(token.generated.token for token in logprobs) == "blue sky"
    assert tokenizer.threads
