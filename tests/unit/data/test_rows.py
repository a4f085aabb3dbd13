"""Rows and their hashes."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.rows import Rows, Splits, contents_of, fingerprint


def test_rows_are_returned_in_the_requested_order() -> None:
    rows = Rows(("0", "1", "2"), ("a", "b", "c"), ("x", "y", "z"), ("k", "l", "m"), {"sex": ("f", "m", "f")})
    assert rows.take([2, 0]) == Rows(("2", "0"), ("c", "a"), ("z", "x"), ("m", "k"), {"sex": ("f", "f")})
    assert len(rows.take([])) == 0


triples = st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4)), max_size=6)


@given(first=triples, second=triples)
def test_different_splits_have_different_fingerprints(
    first: list[tuple[str, str, str]], second: list[tuple[str, str, str]]
) -> None:
    empty = Rows((), (), ())
    prints = [
        fingerprint(Splits(train=_rows(triples_of_split), validation=empty, test=empty))
        for triples_of_split in (first, second)
    ]
    assert (prints[0] == prints[1]) == (first == second)
    assert set(prints[0]) == {"train", "validation", "test"}


def test_the_fingerprint_depends_on_the_role_and_name_of_a_column() -> None:
    plain = Rows(("0",), ("text",), ("label",))
    variants = [
        plain,
        replace(plain, split_keys=("x",)),
        replace(plain, groups={"sex": ("x",)}),
        replace(plain, groups={"ward": ("x",)}),
    ]
    empty = Rows((), (), ())
    assert len({fingerprint(Splits(train=rows, validation=empty, test=empty))["train"] for rows in variants}) == len(
        variants
    )


def test_the_content_of_a_row_is_its_normalised_text_and_its_label() -> None:
    rows = Rows(("0", "1"), ("A  text ", "b"), ("x", "Y"), split_keys=("k", "l"), groups={"sex": ("f", "m")})
    assert contents_of(rows) == [("a text", "x"), ("b", "Y")]


def _rows(triples_of_split: list[tuple[str, str, str]]) -> Rows:
    ids, texts, labels = (
        (tuple(column) for column in zip(*triples_of_split, strict=True)) if triples_of_split else ((), (), ())
    )
    return Rows(ids, texts, labels)
