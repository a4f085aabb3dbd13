"""The language of a text is recognized by its script and its function words."""

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tailorbird.data.profiling.languages import language_of, languages_of

SETS = os.environ.get("TAILORBIRD_DATA")


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
    assert languages.sentence() == "English 75%, German 25%"
    assert languages_of([]).foreign_share == 0


@pytest.mark.skipif(SETS is None, reason="TAILORBIRD_DATA is not set to a folder of data sets")
@pytest.mark.parametrize(
    ("name", "column", "recognized"),
    [
        ("banking77", "text", 0.95),
        ("contract_nli_clauses", "text", 0.95),
        ("pii_presidio", "text", 0.8),
    ],
)
def test_english_data_sets_are_recognized_as_english(
    name: str, column: str, recognized: float
) -> None:
    assert SETS is not None
    languages = languages_of(pq.read_table(Path(SETS) / name / "test.parquet")[column].to_pylist())
    assert languages.num_recognized >= recognized * languages.num_texts
    assert languages.foreign_share < 0.02
