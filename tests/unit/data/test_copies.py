"""Copies are found by letters and digits, near copies by their words."""

from collections import Counter
from math import log
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tailorbird.data.copies import (
    MIN_WEIGHT,
    RARE_SHARE,
    SIMILARITY,
    copies_of,
    copy_index,
    documents,
)
from tailorbird.data.fingerprints import letters_and_digits
from tailorbird.data.rows import Rows
from tests.build import rows

QUESTION = "I would like to transfer money from my other bank account into this one"
OTHERS = tuple(
    f"{word} texts of unrelated customers keep the shares of words low"
    for word in "abcdefghijklmnopqrst"
)


def near(text: str, *, other: str) -> bool:
    index = copy_index((text, *OTHERS), labels=("x", *OTHERS))
    return copies_of(letters_and_digits(other), label="x", index=index) == {0}


@pytest.mark.parametrize(
    ("text", "other", "is_near"),
    [
        (
            QUESTION,
            "Hello, I would like to transfer some money from my other account into this one",
            True,
        ),
        (
            QUESTION,
            "I would like to order a card for my other bank account and not this one",
            False,
        ),
        ("Fracture of left femur", "Fracture of right femur", False),
        ("Cancel my order", "Cancel my order please", False),
        ("", "...", False),
    ],
)
def test_single_words_make_no_new_text_unless_it_is_short(
    text: str, other: str, is_near: bool
) -> None:
    assert near(text, other=other) == is_near


texts = st.sets(st.sampled_from("abcdefghijklmn"), min_size=7).map(sorted).map(" ".join)
labels = st.sampled_from("xy")


@given(similar=st.lists(st.tuples(texts, labels), max_size=12), text=texts, label=labels)
@example(
    similar=[("a", "y"), ("b", "y"), ("c d e f g h i j", "x")],
    text="a b c d e f g h i j",
    label="x",
)
@example(
    similar=[("a", "y"), ("b", "y"), ("a b c d e f g h i j", "x")],
    text="c d e f g h i j",
    label="x",
)
def test_the_index_finds_what_a_comparison_with_all_texts_finds(
    similar: list[tuple[str, str]], text: str, label: str
) -> None:
    rare = [(str(number), "z") for number in range(100)]  # gives the words weights
    known = [*similar, *rare]
    known_texts, known_labels = zip(*known, strict=True)
    index = copy_index(known_texts, labels=known_labels)
    sets = {other: set(other.split()) for other, _ in known}
    once = 1 / (1 + len(sets))
    counts = Counter(word for words in sets.values() for word in words)

    def weight(words: set[str]) -> float:
        return sum(
            min(1.0, log(once * (counts[word] or 1)) / log(max(RARE_SHARE, once))) for word in words
        )

    words = set(text.split())
    expected = {known_texts.index(text)} if text in sets else set()
    for pair in known:
        others = sets[pair[0]]
        least = SIMILARITY * weight(words | others) - 1e-9
        if (
            pair[1] == label
            and weight(words & others) >= least
            and min(weight(words), weight(others)) >= MIN_WEIGHT
        ):
            expected.add(known.index(pair))
    assert copies_of(text, label=label, index=index) == expected


def rows_of(*texts: str, **columns: Any) -> Rows:
    return rows(texts, ["a"] * len(texts), **columns)


def test_rows_that_are_copies_are_one_document() -> None:
    assert documents(rows_of("One text", "another")) is None
    assert documents(rows_of("One text", "another", "one  TEXT.")) == ("0", "1", "0")
    chain = (QUESTION, f"Hello, {QUESTION}", f"Hello, {QUESTION} please", "another")
    assert documents(rows_of(*chain, *OTHERS)) == ("0", "0", "0", *map(str, range(1, 22)))


def test_a_long_copy_joins_documents_of_split_by_and_a_short_one_does_not() -> None:
    texts = ("No findings", QUESTION, "no findings.", f"Hello, {QUESTION}", "another", *OTHERS)
    keys = ("p1", "p2", "p3", "p4", "p4", *OTHERS)
    expected = ("0", "1", "2", "1", "1", *map(str, range(3, 23)))
    assert documents(rows_of(*texts, split_keys=keys)) == expected
