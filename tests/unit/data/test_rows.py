"""Rows and their hashes."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.rows import Rows, Splits, document_keys, fingerprint, trained_turns


def test_rows_are_returned_in_the_requested_order() -> None:
    rows = Rows(
        ("0", "1", "2"), ("a", "b", "c"), ("x", "y", "z"), ("k", "l", "m"), {"sex": ("f", "m", "f")}
    )
    assert rows.take([2, 0]) == Rows(
        ("2", "0"), ("c", "a"), ("z", "x"), ("m", "k"), {"sex": ("f", "f")}
    )
    assert len(rows.take([])) == 0


triples = st.lists(
    st.tuples(st.text(max_size=4), st.text(max_size=4), st.text(max_size=4)), max_size=6
)


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
    assert len(
        {
            fingerprint(Splits(train=rows, validation=empty, test=empty))["train"]
            for rows in variants
        }
    ) == len(variants)


def _rows(triples_of_split: list[tuple[str, str, str]]) -> Rows:
    ids, texts, labels = (
        (tuple(column) for column in zip(*triples_of_split, strict=True))
        if triples_of_split
        else ((), (), ())
    )
    return Rows(ids, texts, labels)


U, A = "user", "assistant"
TALKS = Rows(
    row_ids=("0", "1", "2"),
    texts=("s\nHow?\nso\nWhy?", "hi\nHow?", "s"),
    labels=("because", "thus", "end"),
    groups={"g": ("x", "y", "z")},
    conversations=(
        (("system", "s"), (U, "How?"), (A, "so"), (U, "Why?")),
        ((A, "hi"), (U, "How?")),
        (("system", "s"),),
    ),
    untrained_turns=((), (0,), ()),
)


def test_each_trained_turn_of_a_conversation_is_a_row_with_the_turns_before_it() -> None:
    rows = trained_turns(TALKS)
    assert rows.row_ids == ("0", "0", "1", "2")
    assert rows.texts == ("s\nHow?", *TALKS.texts)
    assert rows.labels == ("so", *TALKS.labels)
    assert rows.groups == {"g": ("x", "x", "y", "z")}
    assert rows.conversations is not None
    assert rows.conversations[:2] == (
        (("system", "s"), (U, "How?")),
        (TALKS.conversations or ())[0],
    )
    assert rows.untrained_turns == ((), (), (0,), ())
    classes = Rows(("0",), ("t",), ("l",))
    assert trained_turns(classes) is classes


def test_a_conversation_up_to_the_first_question_is_its_document() -> None:
    assert document_keys(TALKS) == ["s how?", "hi how?", "s"]
    assert document_keys(replace(TALKS, split_keys=("a", "B", "a"))) == ["a", "B", "a"]


def test_a_greeting_of_many_conversations_is_no_document() -> None:
    greeted = [((U, "Hello"), (A, "hi"), (U, f"q{row}")) for row in range(11)]
    longer = (*greeted[3], (A, "a"), (U, "more"))
    talks = ((greeted[0][0],), *greeted, longer)
    blank = ("",) * len(talks)
    rows = Rows(tuple(map(str, range(len(talks)))), blank, blank, conversations=talks)
    keys = document_keys(rows)
    assert keys == ["hello", *(f"hello hi q{row}" for row in range(11)), "hello hi q3"]
    assert set(document_keys(rows.take([0, 1, 2, 3, 4, 12]))) == {"hello"}
