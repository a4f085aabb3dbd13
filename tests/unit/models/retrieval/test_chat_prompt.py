"""Prompts with retrieved examples: order, limit of tokens, conversations with several turns."""

from itertools import chain

import pytest

from tailorbird.data.chat_template import prompt_tokens
from tailorbird.data.rows import Conversation, Rows, concat_rows
from tailorbird.models.retrieval.chat_prompt import chat_prompt, nearest_answer
from tailorbird.models.retrieval.index import build_index
from tailorbird.registry.versions import Prompting, Retrieval
from tests import build
from tests.small_chat import tokenizer

QUESTIONS = ("blue sky", "blue skies", "green leaf", "red rose")
CONVERSATION: Conversation = (("user", "green leaf"), ("assistant", "ok"), ("user", "a blue sky"))
ROWS = build.rows(QUESTIONS, ("a0", "a1", "a2", "a3"), chat=True)
INDEX = build_index(ROWS, seed=0)


def prompting_of(num_examples: int, *, max_tokens: int = 1000) -> Prompting:
    retrieval = Retrieval(num_examples=num_examples, max_prompt_tokens=max_tokens, index_sha256="")
    return Prompting(system="s", max_new_tokens=4, retrieval=retrieval)


def example(number: int) -> Conversation:
    return (("user", QUESTIONS[number]), ("assistant", f"a{number}"))


def test_the_examples_are_nearest_to_the_last_turn_of_the_user_and_the_nearest_is_last() -> None:
    prompt = chat_prompt(
        CONVERSATION, tokenizer=tokenizer(), prompting=prompting_of(2), index=INDEX
    )
    assert prompt.examples == (*example(1), *example(0))
    expected = (("system", "s"), *example(1), *example(0), *CONVERSATION)
    assert prompt.tokens == prompt_tokens(expected, tokenizer=tokenizer(), system=None)
    assert nearest_answer(CONVERSATION, index=INDEX).text == "a0"
    conversation = (("system", "t"), *CONVERSATION)  # it keeps its system message
    prompt = chat_prompt(
        conversation, tokenizer=tokenizer(), prompting=prompting_of(1), index=INDEX
    )
    expected = (("system", "t"), *example(0), *CONVERSATION)
    assert prompt.tokens == prompt_tokens(expected, tokenizer=tokenizer(), system=None)


@pytest.mark.parametrize(("num_fitting", "included"), [(2, (1, 0)), (0, ())])
def test_examples_that_exceed_the_limit_are_omitted_the_least_similar_first(
    num_fitting: int, included: tuple[int, ...]
) -> None:
    whole = chat_prompt(
        CONVERSATION, tokenizer=tokenizer(), prompting=prompting_of(num_fitting or 1), index=INDEX
    )
    limit = len(whole.tokens) if num_fitting else 1
    prompt = chat_prompt(
        CONVERSATION,
        tokenizer=tokenizer(),
        prompting=prompting_of(4, max_tokens=limit),
        index=INDEX,
    )
    assert prompt.examples == tuple(chain.from_iterable(map(example, included)))
    assert len(prompt.tokens) <= limit or not included


def test_an_example_of_a_row_that_starts_with_a_turn_of_the_assistant_starts_with_the_users() -> (
    None
):
    """Some chat templates refuse other conversations."""
    greeted = (("assistant", "hello"), ("user", "blue sky"))
    rows = concat_rows(
        [ROWS, Rows(("4",), ("hello\nblue sky",), ("a4",), conversations=(greeted,))]
    )
    prompt = chat_prompt(
        (("user", "a blue sky"),),
        tokenizer=tokenizer(),
        prompting=prompting_of(5),
        index=build_index(rows, seed=0),
    )
    assert prompt.examples[-4:] == (*(("user", "blue sky"), ("assistant", "a4")), *example(0))
