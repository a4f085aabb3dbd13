"""Rows and their hashes."""

from tailorbird.data.rows import (
    document_keys,
    rows_sha256,
    trained_turns,
)
from tests.build import rows


def test_rows_are_returned_in_the_requested_order() -> None:
    part = TALKS.take([2, 0])
    assert (part.row_ids, part.labels) == (("2", "0"), ("end", "because"))
    assert (part.groups, part.untrained_turns) == ({"g": ("z", "x")}, ((), ()))


def test_the_fingerprint_depends_on_each_value_and_on_the_role_and_name_of_a_column() -> None:
    variants = [
        rows(["text"]),
        rows(["text"], first=1),
        rows(["text"] * 2),
        rows(["tex"], ["tb"]),
        rows(["text"], ["b"]),
        rows(["text"], split_keys=("x",)),
        rows(["text"], groups={"sex": ("x",)}),
        rows(["text"], groups={"ward": ("x",)}),
    ]
    assert len(set(map(rows_sha256, variants))) == len(variants)


U, A = "user", "assistant"
TALKS = rows(
    ["s\nHow?\nso\nWhy?", "hi\nHow?", "s"],
    ["because", "thus", "end"],
    groups={"g": ("x", "y", "z")},
    conversations=(
        (("system", "s"), (U, "How?"), (A, "so"), (U, "Why?")),
        ((A, "hi"), (U, "How?")),
        (("system", "s"),),
    ),
    untrained_turns=((), (0,), ()),
)


def test_each_trained_turn_of_a_conversation_is_a_row_with_the_turns_before_it() -> None:
    trained = trained_turns(TALKS)
    assert trained.row_ids == ("0", "0", "1", "2")
    assert trained.texts == ("s\nHow?", *TALKS.texts)
    assert trained.labels == ("so", *TALKS.labels)
    assert trained.turns[:2] == ((("system", "s"), (U, "How?")), TALKS.turns[0])
    assert trained.untrained_turns == ((), (), (0,), ())


def test_a_greeting_of_many_conversations_is_no_document() -> None:
    greeted = [((U, "Hello"), (A, "hi"), (U, f"q{row}")) for row in range(11)]
    longer = (*greeted[3], (A, "a"), (U, "more"))
    talks = ((greeted[0][0],), *greeted, longer)
    greetings = rows([""] * len(talks), conversations=talks)
    keys = document_keys(greetings)
    assert keys == ["hello", *(f"hello hi q{row}" for row in range(11)), "hello hi q3"]
    assert set(document_keys(greetings.take([0, 1, 2, 3, 4, 12]))) == {"hello"}
