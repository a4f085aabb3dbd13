"""Grammars of response formats as text, which vLLM receives."""

import asyncio
import random
import threading
from typing import Any

import pytest
import torch

from serving.engines import vllm_engine
from serving.http.schemas import RequestError
from tailorbird.config.formats.response_format import (
    ChoiceFormat,
    JsonObjectFormat,
    StructuredFormat,
)
from tailorbird.models.grammar import compiler
from tailorbird.models.grammar.compiler import FormatError, GrammarCompiler, grammar_of
from tests.unit.byte_level import PADDED, tokenizer
from tests.unit.models.grammar.test_compiler import NUMBERS, OTHERS, TEXTS, schema_format

TOKENIZER = tokenizer()
VOCAB_SIZE, END = len(TOKENIZER) + PADDED, int(TOKENIZER.eos_token_id)
COMPILER = GrammarCompiler(TOKENIZER, vocab_size=VOCAB_SIZE, end_id=END)


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
    monkeypatch.setattr(compiler, "grammar_of", recorded)
    monkeypatch.setattr(vllm_engine, "MAX_GRAMMARS", 2)
    texts = vllm_engine.GrammarTexts(version_format=choice("own"), compiler=COMPILER)

    async def scenario() -> None:
        together = await asyncio.gather(*(texts.text_of(choice(name)) for name in "abc"))
        assert together == [str(grammar_of(choice(name))) for name in "abc"]
        assert await texts.text_of(choice("own")) == str(grammar_of(choice("own")))
        await texts.text_of(choice("c"))
        await texts.text_of(choice("a"))  # the oldest of three was removed

    asyncio.run(scenario())
    assert converted == ["own", "a", "b", "c", "a"]


def test_a_format_without_a_grammar_is_refused_as_an_invalid_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(_format: StructuredFormat) -> object:
        raise FormatError("it is not supported")

    monkeypatch.setattr(compiler, "grammar_of", refuse)
    texts = vllm_engine.GrammarTexts(version_format=None, compiler=COMPILER)
    with pytest.raises(RequestError) as error:
        asyncio.run(texts.text_of(ChoiceFormat(type="choice", choice=("a", "b"))))
    assert error.value.status == 400


def allowed_tokens(matcher: Any) -> set[int]:
    import xgrammar

    scores = torch.zeros(1, VOCAB_SIZE)
    words = xgrammar.allocate_token_bitmask(1, VOCAB_SIZE)
    matcher.fill_next_token_bitmask(words)
    xgrammar.apply_token_bitmask_inplace(scores, words)
    return set(scores[0].isfinite().nonzero()[:, 0].tolist())


def test_the_grammars_that_vllm_compiles_from_the_texts_allow_the_same_tokens_and_special_ones() -> (
    None
):
    """vLLM excludes the special tokens by biases; see `special_token_biases`."""
    import xgrammar

    options = ("yes", "not sure", 'say "é" \\ 日', "<user>")
    formats: list[StructuredFormat] = list(map(schema_format, (*TEXTS, *NUMBERS, *OTHERS)))
    formats += [JsonObjectFormat(type="json_object"), ChoiceFormat(type="choice", choice=options)]
    own = GrammarCompiler(TOKENIZER, vocab_size=VOCAB_SIZE, end_id=END)
    of_vllm = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.from_huggingface(TOKENIZER, vocab_size=VOCAB_SIZE)
    )
    special = {token for token, added in TOKENIZER.added_tokens_decoder.items() if added.special}
    additional = set[int]()
    for format in formats:
        compiled = of_vllm.compile_grammar(str(grammar_of(format)))
        draw = random.Random(0)
        matcher = xgrammar.GrammarMatcher(own.compile(format).compiled)
        vllms = xgrammar.GrammarMatcher(compiled, override_stop_tokens=[END])
        for _ in range(60):
            allowed, vllm_allowed = allowed_tokens(matcher), allowed_tokens(vllms)
            assert vllm_allowed - special == allowed - special
            assert allowed & special <= {END}
            additional |= vllm_allowed - allowed
            token = draw.choice(sorted(allowed))
            assert matcher.accept_token(token)
            assert vllms.accept_token(token)
            if matcher.is_terminated():
                assert vllms.is_terminated()
                break
    assert additional == special - {END}
