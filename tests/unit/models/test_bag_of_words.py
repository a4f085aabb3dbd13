"""Tests of bags of words: features and storage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird.models import bag_of_words
from tailorbird.models.bag_of_words import (
    BagOfWords,
    NgramOptions,
    bag_files,
    fit_vectorizers,
    load_bag,
    vocabulary_limit,
)
from tailorbird.models.errors import ModelError

TEXTS = ("injury of the retina", "chronic pain in the eardrum", "nail infection", "größe ½ 日本")
UNKNOWN = ("", "QQQ", "?!")


def bag_of(texts: tuple[str, ...] = TEXTS, *, num_classes: int = 3) -> BagOfWords:
    """Return a bag of words with random weights."""
    vectorizers, features = fit_vectorizers(texts, num_classes=num_classes)
    generator = np.random.default_rng(0)
    weight = generator.normal(size=(features.shape[1], num_classes))
    bias = generator.normal(size=num_classes)
    return BagOfWords(vectorizers, weight.astype(np.float32), bias.astype(np.float32))


def write_bag(folder: Path, bag: BagOfWords) -> None:
    folder.mkdir(exist_ok=True)
    for name, content in bag_files(bag).items():
        (folder / name).write_bytes(content)


def test_each_block_of_features_has_length_one_in_every_row() -> None:
    vectorizers, features = fit_vectorizers(TEXTS, num_classes=3)
    assert list(vectorizers) == ["words", "characters"]
    num_words = len(vectorizers["words"].vocabulary_)
    for block in (features[:, :num_words], features[:, num_words:]):
        np.testing.assert_allclose(np.sqrt(block.multiply(block).sum(axis=1)), 1, rtol=1e-6)
    assert features.dtype == np.float32
    vectorizers, _ = fit_vectorizers(["++", "--"], num_classes=3)
    assert list(vectorizers) == ["characters"]
    with pytest.raises(ValueError, match="no training text"):
        fit_vectorizers(["", " "], num_classes=3)


OTHER_OPTIONS = {
    "words": NgramOptions(
        analyzer="word",
        ngram_range=(1, 1),
        token_pattern=r"\S+",
        lowercase=False,
        sublinear_tf=False,
    ),
    "letters": NgramOptions(analyzer="char", ngram_range=(3, 3)),
}


def test_a_loaded_bag_has_the_same_logits_bit_for_bit_if_the_code_has_other_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [*TEXTS, *UNKNOWN, "Retina retina retina-nail pain pain"]
    with monkeypatch.context() as patch:
        patch.setattr(bag_of_words, "NGRAMS", OTHER_OPTIONS)
        fitted = bag_of()
        expected = fitted.logits(texts)
        write_bag(tmp_path, fitted)
    loaded = load_bag(tmp_path)
    assert list(loaded.vectorizers) == list(OTHER_OPTIONS)
    np.testing.assert_array_equal(loaded.logits(texts), expected)
    np.testing.assert_array_equal(fitted.logits(["!?"])[0], fitted.bias)


@pytest.mark.parametrize(
    "change",
    [
        {"token_pattern": "("},
        {"token_pattern": "(a)(b)"},
        {"analyzer": "tokens"},
        {"ngram_range": [0, 1]},
    ],
)
def test_invalid_stored_options_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write_bag(tmp_path, bag_of())
    stored = json.loads((tmp_path / bag_of_words.TERMS_FILE).read_bytes())
    stored["options"]["words"] |= change
    (tmp_path / bag_of_words.TERMS_FILE).write_text(json.dumps(stored))
    with pytest.raises(ModelError):
        load_bag(tmp_path)


def test_the_vocabulary_has_the_most_frequent_n_grams_and_is_smaller_for_more_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = {250: 100_000, 1_000: 25_000, 50_000: 2_000}
    assert {classes: vocabulary_limit(classes) for classes in limits} == limits
    monkeypatch.setattr(bag_of_words, "MAX_TERMS", 2)
    texts = ["heart pain", "pain heart", "heart failure", "lung"]
    vectorizers, features = fit_vectorizers(texts, num_classes=3)
    assert set(vectorizers["words"].vocabulary_) == {"heart", "pain"}
    assert features.shape == (4, 4)


@pytest.mark.parametrize("damage", ["terms", "weights", "missing"])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    write_bag(tmp_path, bag_of())
    if damage == "terms":
        write_bag(tmp_path / "other", bag_of(TEXTS[:2]))
        (tmp_path / "other" / bag_of_words.TERMS_FILE).replace(tmp_path / bag_of_words.TERMS_FILE)
    elif damage == "weights":
        (tmp_path / bag_of_words.WEIGHTS_FILE).write_bytes(b"no tensors")
    else:
        (tmp_path / bag_of_words.WEIGHTS_FILE).unlink()
    with pytest.raises(ModelError):
        load_bag(tmp_path).logits(TEXTS)
