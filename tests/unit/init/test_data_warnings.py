"""Warnings about unequal classes and unequal splits, and the settings that follow from them."""

from collections import Counter

import numpy as np
import pytest

from tailorbird.data.rows import Rows, Splits
from tailorbird.init.data_warnings import split_warnings, uneven_classes


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"a": 70, "b": 30}, "the largest class has 70% of the rows"),
        ({"a": 200, "b": 150, "c": 20}, "'a' has 10 times the rows of 'c'"),
        ({"a": 200, "b": 150, "c": 30}, None),
        ({"a": 200, "b": 150, "c": 2}, None),  # too few rows for a score of the class
    ],
)
def test_classes_that_differ_much_in_size_are_a_reason_for_macro_f1(
    counts: dict[str, int], reason: str | None
) -> None:
    text = uneven_classes(Counter(counts), least=10)
    assert (text or "").startswith(reason or "")
    assert (text is None) == (reason is None)


def rows(seed: int, *, size: int, share: float = 0.03, words: int = 8) -> Rows:
    generator = np.random.default_rng(seed)
    labels = np.where(
        generator.random(size) < share, "out of scope", generator.choice(["a", "b"], size)
    )
    texts = tuple("word " * count for count in generator.poisson(words, size))
    return Rows(tuple(map(str, range(size))), texts, tuple(labels.tolist()))


def test_a_class_that_is_3_percent_of_validation_and_18_percent_of_test_is_reported() -> None:
    splits = Splits(
        rows(1, size=4000, share=0.18), rows(2, size=800), rows(3, size=1500, share=0.18)
    )
    (warning,) = split_warnings(splits)
    assert "'out of scope' is 2.1% in validation and 18.1% in test" in warning


def test_longer_test_texts_are_reported_for_both_other_splits() -> None:
    splits = Splits(rows(1, size=4000), rows(2, size=800), rows(3, size=1500, words=14))
    assert [warning.partition(" and ")[0] for warning in split_warnings(splits)] == [
        "validation",
        "train",
    ]


def test_splits_of_the_same_rows_rarely_differ() -> None:
    reported = [
        split_warnings(
            Splits(rows(seed, size=1000), rows(1000 + seed, size=300), rows(2000 + seed, size=400))
        )
        for seed in range(60)
    ]
    assert sum(map(bool, reported)) <= 3
