"""The chat engine of a cascade: which part answers, complete and streamed, and what happens when a
part fails."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest

from serving.engines.base_chat import ChatEngine, PartialAnswer
from serving.http.schemas import RequestError
from serving.hybrid.chat_engine import HybridChatEngine
from serving.hybrid.part_state import MAX_TIMEOUTS
from serving.limits import FairSlots
from serving.replica.generation import partial_answers
from tailorbird.config.formats.response_format import ChoiceFormat
from tailorbird.registry.hybrid_routing import Routing
from tests.unit.serving.engines.test_nearest_engine import engine_of
from tests.unit.serving.replica.fake_engine import PROMPTING, FakeEngine, generation_of

# similarity to the nearest training row: 1, less, 0
KNOWN = "blue sky"
SIMILAR = "blue skies"
OTHER = "zzz"
STORED = "Blue\u2014as ever!"


def outcome(engine: Any, text: str, **fields: Any) -> tuple[str, str | None, bool]:
    """Return the last answer's text, the part that answered, and whether it was a fallback."""
    answer = answers_of(engine, text, **fields)[-1]
    return answer.text, answer.answered_by, answer.is_fallback


def hybrid_of(
    first: ChatEngine,
    second: ChatEngine,
    *,
    threshold: float = 0.9,
    limit: int | None = None,
    timeout_s: float = 0.05,
) -> Any:
    hybrid = SimpleNamespace(routing=Routing(by="cascade", threshold=threshold))
    version: Any = SimpleNamespace(
        name="task", version="hybrid-1", prompting=PROMPTING, hybrid=hybrid
    )
    return HybridChatEngine(version, (first, second), max_new_tokens=limit, timeout_s=timeout_s)


def answers_of(
    engine: Any, text: str, *, streaming: bool = False, **fields: Any
) -> list[PartialAnswer]:
    async def read() -> list[PartialAnswer]:
        generation = generation_of(engine, text, **fields)
        return [answer async for answer in partial_answers(generation, streaming=streaming)]

    return asyncio.run(read())


@pytest.mark.parametrize("streaming", [False, True])
def test_nearest_answers_a_known_question_and_the_language_model_all_others(
    streaming: bool,
) -> None:
    second = FakeEngine("one two three")
    engine = hybrid_of(engine_of(), second)
    (known,) = answers_of(engine, KNOWN, streaming=streaming, logprobs=not streaming)
    assert (known.text, known.answered_by, known.is_fallback) == (STORED, "first", False)
    assert known.confidence == pytest.approx(1)
    assert known.logprobs is None
    assert second.num_generated == 0
    assert outcome(engine, OTHER, streaming=streaming) == ("one two three", "second", False)
    assert len(answers_of(engine, OTHER, streaming=streaming)) > 1


def test_a_first_part_with_a_language_model_answers_completely_before_the_decision() -> None:
    sure = hybrid_of(FakeEngine("one two", logprob=-0.01), FakeEngine("three"))
    (answer,) = answers_of(sure, "x", streaming=True, logprobs=True)
    assert (answer.text, answer.answered_by) == ("one two", "first")
    assert answer.logprobs is not None
    assert {token.generated.logprob for token in answer.logprobs} == {-0.01}
    # the confidence is the exponential of the mean log-probability
    for threshold, name in ((math.exp(-3.0) - 1e-9, "first"), (math.exp(-3.0) + 1e-9, "second")):
        unsure = FakeEngine("one two", logprob=-3.0)
        engine = hybrid_of(unsure, FakeEngine("three"), threshold=threshold)
        assert outcome(engine, "x")[1] == name


FAULTS: dict[str, dict[str, Any]] = {"fails": {"fails_after": 0}, "hangs": {"hangs": True}}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("streaming", [False, True])
def test_if_a_part_is_away_the_other_one_answers_and_says_so(fault: str, streaming: bool) -> None:
    away = FakeEngine("one", **FAULTS[fault])
    two = FakeEngine("two")
    is_first = outcome(hybrid_of(engine_of(), away), SIMILAR, streaming=streaming)
    assert is_first == (STORED, "first", True)
    assert outcome(hybrid_of(away, two), "x", streaming=streaming) == ("two", "second", True)
    with pytest.raises(RequestError) as caught:
        outcome(hybrid_of(away, FakeEngine("two", **FAULTS[fault])), "x", streaming=streaming)
    assert caught.value.status == 503


def test_the_time_limit_of_a_part_includes_the_wait_for_a_slot() -> None:
    slots = FairSlots(1)
    second = FakeEngine("one")
    second.slots = slots
    generation = generation_of(hybrid_of(engine_of(), second), SIMILAR)

    async def read() -> list[PartialAnswer]:
        async with slots.held("other", cost=1):
            return [answer async for answer in partial_answers(generation, streaming=False)]

    (answer,) = asyncio.run(read())
    assert (answer.answered_by, answer.is_fallback, second.num_calls) == ("first", True, 0)


def test_a_part_that_times_out_repeatedly_is_skipped_for_some_time() -> None:
    first = FakeEngine("one", logprob=-3.0)
    second = FakeEngine("two", hangs=True)
    engine = hybrid_of(first, second)
    num_calls = []
    for _ in range(MAX_TIMEOUTS + 2):
        assert outcome(engine, "x") == ("one", "first", True)
        num_calls.append(second.num_calls)
    assert num_calls == [1, 2, 3, 3, 3]
    first.hangs = True
    for _ in range(MAX_TIMEOUTS + 1):  # at least one part is tried, even if both time out
        calls = first.num_calls + second.num_calls
        with pytest.raises(RequestError):
            answers_of(engine, "x")
        assert first.num_calls + second.num_calls > calls


def test_a_part_that_cannot_prepare_a_prompt_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    first = FakeEngine("one")
    second = FakeEngine("two")
    engine = hybrid_of(first, second)
    monkeypatch.setattr(first, "chat_prompt", lambda *_, **__: 1 / 0)
    assert outcome(engine, "x") == ("two", "second", True)
    monkeypatch.setattr(second, "chat_prompt", lambda *_, **__: 1 / 0)
    with pytest.raises(RequestError):
        answers_of(engine, "x")


def test_an_error_after_the_first_token_ends_the_stream() -> None:
    engine = hybrid_of(engine_of(), FakeEngine("one two three", fails_after=2))
    with pytest.raises(RequestError):
        answers_of(engine, OTHER, streaming=True)


def test_a_stored_answer_is_not_cut_at_the_models_limit_and_a_request_can_set_one() -> None:
    engine = hybrid_of(engine_of(), FakeEngine("one two three four five six"), limit=3)
    assert answers_of(engine, KNOWN)[-1].finish_reason == "stop"
    assert answers_of(engine, OTHER)[-1].finish_reason == "length"
    assert answers_of(engine, KNOWN, max_tokens=1)[-1].finish_reason == "length"


def test_a_prompt_that_is_too_long_for_one_part_is_answered_by_the_other_part() -> None:
    small = FakeEngine("one")
    large = FakeEngine("two", logprob=-3.0)
    large.max_length = 1024
    text = "blue skies " + "z" * 100
    assert outcome(hybrid_of(small, large), text) == ("two", "second", True)
    assert outcome(hybrid_of(large, small), text) == ("two", "first", True)
    assert outcome(hybrid_of(engine_of(), small), text) == (STORED, "first", True)
    assert small.num_calls == 0
    with pytest.raises(RequestError):
        generation_of(hybrid_of(small, FakeEngine("two")), text)


def test_a_hybrid_can_answer_while_one_part_runs_and_ends_both() -> None:
    first = FakeEngine("one")
    second = FakeEngine("two")
    engine = hybrid_of(first, second)
    second.running = False
    assert (engine.running, engine.can_answer) == (False, True)
    first.running = False
    assert not engine.can_answer
    engine.end()
    assert (first.ended, second.ended) == (True, True)


def test_a_format_that_one_part_cannot_have_is_refused_whichever_part_would_answer() -> None:
    choice = {"type": "choice", "choice": ["yes", "no"]}
    one = FakeEngine("one")
    for parts in ((one, engine_of()), (engine_of(), one)):
        with pytest.raises(RequestError) as caught:
            generation_of(hybrid_of(*parts), OTHER, response_format=choice)
        assert (caught.value.status, caught.value.param) == (400, "response_format")
    accepted = generation_of(hybrid_of(one, one), OTHER, response_format=choice)
    assert isinstance(accepted.format, ChoiceFormat)
    assert accepted.format.choice == ("yes", "no")
