"""Grammars of response formats as text, which vLLM receives."""

import asyncio
import threading

import pytest

from serving.engines import vllm_engine
from serving.http.schemas import RequestError
from tailorbird.config.formats.response_format import ChoiceFormat, StructuredFormat
from tailorbird.models.grammar.compiler import FormatError, grammar_of


def test_grammars_are_converted_one_at_a_time_and_kept_and_the_version_s_own_is_not_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    converted: list[str] = []
    busy = threading.Lock()

    def recorded(format: StructuredFormat) -> object:
        assert busy.acquire(blocking=False), "two grammars are converted at the same time"
        try:
            converted.append(format.choice[0])  # type: ignore[union-attr]
            return grammar_of(format)
        finally:
            busy.release()

    def choice(name: str) -> ChoiceFormat:
        return ChoiceFormat(type="choice", choice=(name, "other"))

    monkeypatch.setattr(vllm_engine, "grammar_of", recorded)
    monkeypatch.setattr(vllm_engine, "MAX_GRAMMARS", 2)
    texts = vllm_engine.GrammarTexts(own=choice("own"))

    async def scenario() -> None:
        together = await asyncio.gather(*(texts.text_of(choice(name)) for name in "abc"))
        assert together == [str(grammar_of(choice(name))) for name in "abc"]
        assert await texts.text_of(choice("own")) == str(grammar_of(choice("own")))
        await texts.text_of(choice("c"))
        await texts.text_of(choice("a"))  # the oldest of three was removed

    asyncio.run(scenario())
    assert converted == ["own", "a", "b", "c", "a"]


def test_a_format_without_a_grammar_is_refused_as_an_invalid_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_format: StructuredFormat) -> object:
        raise FormatError("it is not supported")

    monkeypatch.setattr(vllm_engine, "grammar_of", refuse)
    texts = vllm_engine.GrammarTexts(own=None)
    with pytest.raises(RequestError, match="it is not supported") as error:
        asyncio.run(texts.text_of(ChoiceFormat(type="choice", choice=("a", "b"))))
    assert error.value.status == 400
