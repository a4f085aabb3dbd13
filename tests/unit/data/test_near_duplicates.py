"""Near-duplicates are counted by shared and unshared n-grams; large sets are sampled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from tailorbird.data import near_duplicates as similar
from tailorbird.data.near_duplicates import NearDuplicates, near_duplicates

TRAIN = [
    "kinking and stricture of the ureter without hydronephrosis",
    "chronic inflammation of the pancreas",
    "acute myocardial infarction of the anterior wall",
    "my card has not arrived yet, where is it",
]
words = st.sampled_from(["fever", "cough", "chronic", "acute", "pain", "of", "the", "left", "right", "knee", "burn"])
text_lists = st.lists(st.lists(words, min_size=1, max_size=6).map(" ".join), min_size=1, max_size=8)


def test_a_text_with_a_changed_letter_is_a_near_duplicate_and_an_unrelated_text_is_not() -> None:
    texts = ["kinking and strictures of the ureter without hydronephrosis", "fracture of the left femur"]
    assert near_duplicates(texts, among=TRAIN) == NearDuplicates(positions=(0,), num_compared=2)


def test_case_and_white_space_do_not_matter() -> None:
    assert near_duplicates(["  CHRONIC   inflammation of\nthe pancreas"], among=TRAIN).num_duplicates == 1


def test_words_that_are_not_in_train_reduce_the_similarity() -> None:
    text = "chronic inflammation of the pancreas xylophone quartz juggling bumblebee"
    assert near_duplicates([text], among=TRAIN).num_duplicates == 0


@pytest.mark.parametrize("texts", [[], ["", " "]])
def test_empty_texts_have_no_near_duplicates(texts: list[str]) -> None:
    assert near_duplicates(texts, among=TRAIN) == NearDuplicates((), len(texts))
    assert near_duplicates(texts, among=["", " "]) == NearDuplicates((), len(texts))


@given(texts=text_lists, among=text_lists)
def test_counts_equal_those_of_a_vocabulary_of_all_texts(texts: list[str], among: list[str]) -> None:
    weigh = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5)).fit([*texts, *among])
    nearest = (weigh.transform(texts) @ weigh.transform(among).T).toarray().max(axis=1)
    unsure = abs(nearest - similar.THRESHOLD) < 1e-4  # float32 against float64
    num_duplicates = near_duplicates(texts, among=among).num_duplicates
    assert (
        (nearest[~unsure] >= similar.THRESHOLD).sum() <= num_duplicates <= (nearest >= similar.THRESHOLD - 1e-4).sum()
    )


def test_the_chunk_size_does_not_change_the_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["kinking and strictures of the ureter without hydronephrosis", "a fall", "my card hasn't arrived yet", "x"]
    whole = near_duplicates(texts, among=TRAIN, threshold=0.5)
    assert whole.num_duplicates == 2
    monkeypatch.setattr(similar, "CHUNK_CHARACTERS", 1)
    monkeypatch.setattr(similar, "CHUNK_PAIRS", 1)
    assert near_duplicates(texts, among=TRAIN, threshold=0.5) == whole


def test_a_large_set_is_sampled_deterministically_and_the_sample_size_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    texts = [TRAIN[0]] * 60 + ["fracture of the left femur"] * 60
    assert near_duplicates(texts, among=TRAIN) == NearDuplicates(tuple(range(60)), 120)
    monkeypatch.setattr(similar, "MIN_COMPARED", 10)
    monkeypatch.setattr(similar, "MAX_WORK", sum(map(len, texts)) * len(TRAIN) / 4)
    sampled = near_duplicates(texts, among=TRAIN)
    assert sampled.num_compared == 30
    assert 0 < sampled.num_duplicates < 30
    assert near_duplicates(texts, among=TRAIN) == sampled
    monkeypatch.setattr(similar, "MAX_WORK", 1.0)
    assert near_duplicates(texts, among=TRAIN).num_compared == 10
