"""Lengths of texts."""

from tailorbird.data.profiling.token_lengths import (
    SPECIAL_TOKENS,
    TURN_TOKENS,
    conversation_lengths,
    text_lengths,
)
from tests.small_chat import tokenizer


def test_lengths_are_estimated_from_words_without_a_tokenizer() -> None:
    lengths = text_lengths(["one two three four five"] * 99 + ["one"], tokenizer=None)
    assert (lengths.p99, lengths.counted) == (8 + SPECIAL_TOKENS, False)
    chat = conversation_lengths(
        [(("user", "one two"), ("assistant", "one two three four five"))], tokenizer=None
    )
    assert (chat.median, chat.answer_p99) == (4 + 8 + TURN_TOKENS, 9)


def test_a_tokenizer_counts_the_tokens_that_training_uses() -> None:
    assert text_lengths(["abc", "abcde"], tokenizer=tokenizer()).p99 == 5
    assert text_lengths(["abc", "abcde"], tokenizer=tokenizer(), prompt="ab").p99 == 7
    conversation = (("user", "abc"), ("assistant", "de"), ("user", "f"), ("assistant", "ghij"))
    chat = conversation_lengths([conversation], tokenizer=tokenizer())
    assert chat.counted
    assert chat.answer_p99 == 5  # with the end-of-turn token
    assert chat.median == (1 + 3 + 1) + (1 + 2 + 1) + (1 + 1 + 1) + (1 + 4 + 1)
