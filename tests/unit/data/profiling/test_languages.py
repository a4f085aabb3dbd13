"""The language of a text is recognized by its script and its function words."""

import pytest

from tailorbird.data.profiling.languages import language_of, languages_of


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
    languages = languages_of(
        ["the card of my friend"] * 3 + ["das ist nicht die Karte"] + ["J44.1"] * 4
    )
    assert (languages.num_texts, languages.num_recognized, languages.foreign_share) == (8, 4, 0.25)
    assert languages_of([]).foreign_share == 0
