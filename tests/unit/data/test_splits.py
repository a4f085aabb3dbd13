"""Splits are functions of key and seed, tested on random sets of keys."""

from collections import Counter
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.splits import (
    classes_first,
    normalise,
    split_by_key,
    stratified_split,
    subsample,
)

FRACTIONS = (0.72, 0.11, 0.17)
keys_of_rows = st.lists(st.text(max_size=8), max_size=60)
seeds = st.integers(min_value=0, max_value=2**31)


@given(keys=keys_of_rows, seed=seeds, shuffle=st.randoms(use_true_random=False))
def test_the_split_does_not_depend_on_the_order_or_on_other_rows(
    keys: list[str], seed: int, shuffle: Random
) -> None:
    def assigned(keys: list[str]) -> set[tuple[str, int]]:
        parts = split_by_key(keys, fractions=FRACTIONS, seed=seed)
        return set(zip(keys, parts.tolist(), strict=True))

    shuffled = [*keys, *keys, "one more"]
    shuffle.shuffle(shuffled)
    assert assigned(keys) <= assigned(shuffled)
    assert len(assigned(shuffled)) == len(set(shuffled))


def test_the_split_of_a_key_is_the_same_on_every_machine_and_version() -> None:
    keys = ["A00", "B20", "C34", "D50", "E11", "F32", "G40", "H25", "I10", "J45"]
    parts = split_by_key(keys, fractions=(0.5, 0.25, 0.25), seed=0)
    assert parts.tolist() == [2, 0, 0, 2, 0, 0, 1, 1, 0, 2]
    other = split_by_key(keys, fractions=(0.5, 0.25, 0.25), seed=1)
    assert (parts != other).any()


@given(n=st.integers(0, 200), size=st.integers(0, 250), more=st.integers(0, 100), seed=seeds)
def test_a_subsample_has_sorted_distinct_rows_and_is_part_of_a_larger_one(
    n: int, size: int, more: int, seed: int
) -> None:
    rows = subsample(n, size=size, seed=seed)
    assert len(rows) == min(n, size)
    assert (np.diff(rows) > 0).all()
    assert set(rows.tolist()) <= set(subsample(n, size=size + more, seed=seed).tolist())


@given(labels=st.lists(st.sampled_from("abcd"), min_size=4, max_size=80), seed=seeds)
def test_an_order_of_all_rows_begins_with_one_row_of_each_class(
    labels: list[str], seed: int
) -> None:
    rows = classes_first(labels, seed=seed)
    assert sorted(rows) == list(range(len(labels)))
    assert {labels[row] for row in rows[: len(set(labels))]} == set(labels)


def test_a_stratified_split_keeps_keys_together_and_distributes_labels_evenly() -> None:
    keys = [f"key {number // 3}" for number in range(1800)]
    labels = [("x", "y", "z")[number // 3 % 3] for number in range(1800)]
    parts = stratified_split(keys, labels=labels, folds=(13, 2, 3), seed=0)
    assert len(set(zip(keys, parts.tolist(), strict=True))) == len(set(keys))
    counts = Counter(zip(labels, parts.tolist(), strict=True))
    for part, size in enumerate((1300, 200, 300)):
        assert [counts[label, part] for label in "xyz"] == pytest.approx([size / 3] * 3, abs=6)


@given(text=st.text(max_size=40))
def test_normalising_is_idempotent(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    ("first", "second", "are_equal"),
    [
        ("Chest  pain\n", "chest pain", True),
        ("STRASSE", "straße", True),
        ("café", "cafe\u0301", True),
        ("ileum", "ilium", False),
    ],
)
def test_texts_that_differ_in_case_white_space_or_encoding_are_equal(
    first: str, second: str, are_equal: bool
) -> None:
    assert (normalise(first) == normalise(second)) == are_equal
