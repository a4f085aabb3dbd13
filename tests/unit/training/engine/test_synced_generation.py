"""Generation in step of the ranks, for ZeRO stage 3."""

import pytest

from tailorbird.config.formats.response_format import ChoiceFormat, JsonObjectFormat
from tailorbird.models.generation import answer_prompts
from tailorbird.models.grammar.compiler import FormatError, grammar_for
from tests import small_chat
from tests.unit import byte_level
from training.engine.synced_generation import synced_answers

PROMPTS = [[5, 6, 7], [8], [9, 10]]


def test_answers_in_a_format_are_those_of_the_evaluation() -> None:
    tokenizer, lm = byte_level.tokenizer(), byte_level.language_model()
    grammar = grammar_for(ChoiceFormat(type="choice", choice=("yes", "no")), lm=lm, tokenizer=tokenizer)
    end_id = int(tokenizer.eos_token_id)
    expected = answer_prompts(lm, PROMPTS, max_new_tokens=9, end_id=end_id, grammar=grammar)
    answers = synced_answers(lm, PROMPTS, max_new_tokens=9, end_id=end_id, grammar=grammar)
    assert [answer.tokens for answer in answers] == [answer.tokens for answer in expected]


def test_a_format_that_the_model_cannot_write_is_an_error_and_no_empty_answer() -> None:
    tokenizer, lm = small_chat.tokenizer(), small_chat.language_model()
    grammar = grammar_for(JsonObjectFormat(type="json_object"), lm=lm, tokenizer=tokenizer)
    with pytest.raises(FormatError, match="has no token with which an answer in this format can continue"):
        synced_answers(lm, PROMPTS, max_new_tokens=9, end_id=int(tokenizer.eos_token_id), grammar=grammar)
