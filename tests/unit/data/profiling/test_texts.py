"""Languages and lengths of texts."""

import pytest

from tailorbird.data.profiling.languages import language_of, languages_of
from tailorbird.data.profiling.token_lengths import (
    SPECIAL_TOKENS,
    TURN_TOKENS,
    conversation_lengths,
    text_lengths,
)
from tests.small_chat import tokenizer


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("When will my card be delivered to the new address?", "English"),
        ("Wann wird meine Karte an die neue Adresse geliefert?", "German"),
        ("Quand est-ce que ma carte sera livrée à la nouvelle adresse ?", "French"),
        ("¿Cuándo se entrega la tarjeta en la nueva dirección?", "Spanish"),
        ("Quando verrà consegnata la mia carta al nuovo indirizzo di casa?", "Italian"),
        ("Wanneer wordt mijn kaart op het nieuwe adres bezorgd?", "Dutch"),
        ("När kan jag få mitt kort till den nya adressen?", "Swedish"),
        ("Когда мою карту доставят на новый адрес?", "Cyrillic script"),
        ("カードはいつ届きますか", "Japanese"),
        ("카드는 언제 도착하나요?", "Korean"),
        ("متى ستصل بطاقتي؟", "Arabic script"),
        ("COPD exacerbation, J44.1", None),
        ("", None),
    ],
)
def test_a_text_has_the_language_of_its_function_words_or_its_script(
    text: str, language: str | None
) -> None:
    assert language_of(text) == language


def test_shares_are_of_the_recognized_texts() -> None:
    languages = languages_of(["the card of Ann"] * 3 + ["das ist nicht die Karte"] + ["J44.1"] * 4)
    assert (languages.num_texts, languages.num_recognized, languages.foreign_share) == (8, 4, 0.25)
    assert languages_of([]).foreign_share == 0


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
