"""Answers of random tokens that a grammar allows satisfy the response format."""

import json
import random
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import jsonschema
import pytest
import torch
import xgrammar
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, TypeAdapter

from tailorbird.config.formats.response_format import (
    ChoiceFormat,
    JsonObjectFormat,
    JsonSchemaFormat,
    StructuredFormat,
)
from tailorbird.models.grammar import compiler as compiling
from tailorbird.models.grammar import trial_process
from tailorbird.models.grammar.compiler import FormatError, Grammar, GrammarCompiler
from tailorbird.models.grammar.matcher import NOT_FOLLOWED, TOO_SLOW, AnswerMatcher
from tailorbird.models.grammar.trial_process import TrialProcess
from tests.unit.byte_level import PADDED, random_answer, tokenizer

TOKENIZER = tokenizer()
END = int(TOKENIZER.eos_token_id)
COMPILER = GrammarCompiler(TOKENIZER, vocab_size=len(TOKENIZER) + PADDED, end_id=END)

TEXTS: tuple[dict[str, Any], ...] = (
    {"type": "string"},
    {"type": "string", "minLength": 2, "maxLength": 5},
    {"type": "string", "maxLength": 400},
    {"type": "string", "minLength": 10, "maxLength": 70},
    {"type": "string", "minLength": 32, "maxLength": 34},
    {"type": "string", "minLength": 40, "maxLength": 60},
    {"type": "string", "pattern": "^[A-Z]{1,3}[0-9]{2}(\\.[0-9]+)?$"},
    {"type": "string", "pattern": "^.{0,3}(x[^a-y]+)?$"},
    {"type": "string", "format": "date"},
)
NUMBERS: tuple[dict[str, Any], ...] = (
    {"type": "integer"},
    {"type": "integer", "minimum": -12, "exclusiveMaximum": 1234},
    {"type": "number"},
    {"type": "number", "exclusiveMinimum": 0, "maximum": 1.5},
    {"type": "number", "maximum": -1000},
    {"type": "number", "exclusiveMinimum": 0.1, "exclusiveMaximum": 0.100002},
)
OTHERS: tuple[dict[str, Any], ...] = (
    {"type": "boolean"},
    {"type": ["null", "integer", "string"], "maxLength": 3, "maximum": 7},
    {"enum": ["a", 'é"x\\', "x\ny", "</s>", "<user>", 1, 2.5, True, None, "日本"]},
    {"const": "only this"},
    {},
)
RECURSIVE: dict[str, Any] = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": {
            "type": "object",
            "properties": {"next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["next"],
        }
    },
}


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int


class Dog(BaseModel):
    kind: Literal["dog", "wolf"]
    friend: "Annotated[Cat | Dog, Field(discriminator='kind')] | None"


UNION = TypeAdapter(Annotated[Cat | Dog, Field(discriminator="kind")]).json_schema()
NAMES = st.lists(
    st.sampled_from(["name", "a b", 'é"\\', "", "日", "</s>"]), unique=True, max_size=3
)


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    def with_names(names: list[str], values: list[Any], required: int) -> dict[str, Any]:
        properties = dict(zip(names, values, strict=False))
        return {"type": "object", "properties": properties, "required": list(properties)[:required]}

    objects = st.builds(
        with_names, NAMES, st.lists(inner, min_size=3, max_size=3), st.integers(0, 3)
    )
    maps = st.builds(lambda value: {"type": "object", "additionalProperties": value}, inner)
    arrays = st.builds(
        lambda items: {"type": "array", "items": items, "minItems": 1, "maxItems": 3}, inner
    )
    alternatives = st.builds(
        lambda values: {"anyOf": values}, st.lists(inner, min_size=1, max_size=3)
    )
    return objects | maps | arrays | alternatives


SCHEMAS = st.recursive(st.sampled_from([*TEXTS, *NUMBERS, *OTHERS]), _objects, max_leaves=5)


def schema_format(schema: Any) -> JsonSchemaFormat:
    return JsonSchemaFormat.model_validate(
        {"type": "json_schema", "json_schema": {"schema": schema}}
    )


def answers(grammar: Grammar, *, seed: int, count: int) -> list[str]:
    """Return the answers of several draws that end in time."""
    draw = random.Random(seed)
    texts = [random_answer(grammar, draw, tokenizer=TOKENIZER) for _ in range(count)]
    return [answer for answer in texts if answer is not None]


@given(SCHEMAS, st.integers(0, 1000))
def test_every_answer_satisfies_the_schema(schema: Any, seed: int) -> None:
    for answer in answers(COMPILER.compile(schema_format(schema)), seed=seed, count=3):
        jsonschema.validate(json.loads(answer), schema)


@pytest.mark.parametrize("schema", [*TEXTS, *NUMBERS, *OTHERS, RECURSIVE, UNION])
def test_every_answer_satisfies_a_simple_schema(schema: Any) -> None:
    drawn = answers(COMPILER.compile(schema_format(schema)), seed=0, count=20)
    assert len(drawn) > 10
    for answer in drawn:
        jsonschema.validate(json.loads(answer), schema)


def test_an_object_without_a_schema_is_json() -> None:
    drawn = answers(COMPILER.compile(JsonObjectFormat(type="json_object")), seed=2, count=30)
    assert {type(json.loads(answer)) for answer in drawn} == {dict}


def test_a_choice_gives_each_option_exactly_and_nothing_else() -> None:
    options = ("yes", "no", "not sure", 'say "é" \\ 日', "<user>", "</s>", "x[1]{2}")
    grammar = COMPILER.compile(ChoiceFormat(type="choice", choice=options))
    assert set(answers(grammar, seed=3, count=150)) == set(options)


def finite(scores: torch.Tensor) -> set[int]:
    return set(torch.isfinite(scores).nonzero()[:, 0].tolist())


def mask(matcher: xgrammar.GrammarMatcher) -> set[int]:
    """Return the tokens that a matcher allows."""
    scores = score_row()[None]
    words = xgrammar.allocate_token_bitmask(1, scores.shape[1])
    matcher.fill_next_token_bitmask(words)
    xgrammar.apply_token_bitmask_inplace(scores, words)
    return finite(scores[0])


def allowed_after(matcher: AnswerMatcher, text: str) -> set[int]:
    """Return the tokens that can follow the tokens of `text`, which are new in an answer."""
    scores = score_row()
    matcher.constrain(scores, tokens(text))
    return finite(scores)


def test_the_grammars_that_vllm_compiles_from_the_texts_allow_the_same_tokens_and_special_ones() -> (
    None
):
    """vLLM excludes the special tokens by biases; see `special_token_biases`."""
    options = ("yes", "not sure", 'say "é" \\ 日', "<user>")
    formats: list[StructuredFormat] = list(map(schema_format, (*TEXTS, *NUMBERS, *OTHERS)))
    formats += [JsonObjectFormat(type="json_object"), ChoiceFormat(type="choice", choice=options)]
    vllm_compiler = xgrammar.GrammarCompiler(
        xgrammar.TokenizerInfo.from_huggingface(TOKENIZER, vocab_size=score_row().numel())
    )
    special = {token for token, added in TOKENIZER.added_tokens_decoder.items() if added.special}
    additional = set[int]()
    for format in formats:
        grammar = COMPILER.compile(format)
        draw = random.Random(0)
        matcher = xgrammar.GrammarMatcher(grammar.compiled)
        vllm_matcher = xgrammar.GrammarMatcher(
            vllm_compiler.compile_grammar(grammar.text), override_stop_tokens=[END]
        )
        for _ in range(60):
            allowed = mask(matcher)
            vllm_allowed = mask(vllm_matcher)
            assert vllm_allowed - special == allowed - special
            assert allowed & special <= {END}
            additional |= vllm_allowed - allowed
            token = draw.choice(sorted(allowed))
            assert matcher.accept_token(token)
            assert vllm_matcher.accept_token(token)
            if matcher.is_terminated():
                assert vllm_matcher.is_terminated()
                break
    assert additional == special - {END}


def test_an_error_of_the_library_is_logged_and_not_returned(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "supported_schema", lambda _: {"type": "person"})
    with pytest.raises(FormatError):
        COMPILER.compile(schema_format({"type": "object", "properties": {"a": {}}}))
    assert 'Unsupported type "person"' in caplog.text


def test_a_compiler_keeps_the_grammars_that_were_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "MAX_GRAMMARS", 2)
    small = GrammarCompiler(TOKENIZER, vocab_size=len(TOKENIZER), end_id=END)
    first, second, third = (ChoiceFormat(type="choice", choice=("a", end)) for end in "bcd")
    grammar = small.compile(first)
    small.compile(second)
    assert small.compile(first) is grammar
    small.compile(third)
    assert (small.known(first), small.known(second)) == (grammar, None)
    monkeypatch.setattr(compiling, "MAX_BYTES", grammar.num_bytes)
    small.compile(second)
    assert small.known(first) is None
    assert small.num_bytes <= grammar.num_bytes


def test_a_grammar_whose_tokens_take_too_long_to_find_is_refused_from_then_on() -> None:
    grammar = COMPILER.compile(
        schema_format({"type": "array", "items": {"type": "string", "maxLength": 77}})
    )
    times = iter([0.0, 0.1, 1.0, 3.0])
    matcher = AnswerMatcher(grammar, max_mask_s=1.0, clock=lambda: next(times))
    allowed_after(matcher, "")
    matcher.require_usable()
    assert allowed_after(matcher, "[") == {END}
    for check in (matcher.require_usable, grammar.require_usable):
        with pytest.raises(FormatError, match=TOO_SLOW):
            check()


@pytest.mark.parametrize(
    "pattern",
    [
        "(.{0,5})*",
        f"({'.?' * 20})*",
        "((.?.?.?.?)*(.?.?.?.?)*)*",
        "((a+)+)b",
        "(a|ab){3,}",
        "(|a)*",
        ".?" * 20,
        ".{0,20}[a-z]{0,20}.{0,20}",
        "a?" * 128,
    ],
)
def test_a_pattern_that_leads_to_many_positions_is_refused_or_bounded(pattern: str) -> None:
    """Most of these are quick with a few hundred tokens; the trial refuses the others."""
    format = schema_format({"type": "string", "pattern": pattern})
    reason = ""
    drawn: list[str] = []
    try:
        drawn = answers(COMPILER.compile(format), seed=0, count=2)
    except FormatError as error:
        reason = str(error)
    assert not reason or "simplify its `pattern`" in reason
    assert bool(reason) == (COMPILER.known(format) is None)
    assert all(re.fullmatch(pattern, json.loads(answer)) for answer in drawn)


def test_a_format_that_is_too_slow_ends_the_child_process_and_not_the_next_format(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "trial.py"
    text = trial_process.PROGRAM.read_text(encoding="utf-8")
    call = "        compiled = compiler.compile_grammar(grammar)"
    assert call in text
    endless = f"        while '60' in grammar: pass\n{call}"
    text = text.replace(call, endless).replace("MAX_COMPILE_S = 10", "MAX_COMPILE_S = 1")
    program.write_text(text, encoding="utf-8")
    trials = TrialProcess()
    monkeypatch.setattr(trial_process, "PROGRAM", program)
    monkeypatch.setattr(compiling, "TRIALS", trials)
    with pytest.raises(FormatError):
        COMPILER.compile(schema_format({"type": "string", "minLength": 60}))
    assert answers(
        COMPILER.compile(ChoiceFormat(type="choice", choice=("c", "d"))), seed=0, count=1
    )


def test_scores_that_are_not_numbers_fail_one_answer_and_not_the_grammar() -> None:
    grammar = COMPILER.compile(ChoiceFormat(type="choice", choice=("yes", "no")))
    failed, other = AnswerMatcher(grammar), AnswerMatcher(grammar)
    for matcher in (failed, other):
        allowed_after(matcher, "")
    assert allowed_after(failed, "{") == {END}
    with pytest.raises(RuntimeError, match=NOT_FOLLOWED):
        failed.require_usable()
    assert END not in allowed_after(other, "y")
    other.require_usable()
    grammar.require_usable()


def test_a_slow_answer_in_the_format_of_a_version_does_not_end_others() -> None:
    grammar = COMPILER.compile(ChoiceFormat(type="choice", choice=("own", "other")), keep=False)
    times = iter([0.0, 3.0])
    slow = AnswerMatcher(grammar, max_mask_s=1.0, clock=lambda: next(times))
    allowed_after(slow, "")
    with pytest.raises(FormatError, match=TOO_SLOW):
        slow.require_usable()
    other = AnswerMatcher(grammar)
    allowed_after(other, "")
    other.require_usable()


def score_row() -> torch.Tensor:
    return torch.zeros(len(TOKENIZER) + PADDED)


def tokens(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])
