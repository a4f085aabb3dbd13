"""Data quality checks on random splits: cleaning drops copies, keeps test, and is idempotent."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.fingerprints import letters_and_digits
from tailorbird.data.quality import clean, take_training_rows
from tailorbird.data.rows import DataError, Rows, Splits, text_of
from tests import build
from tests.build import pairs


def rows(*content: tuple[str, str], keys: list[str] | None = None) -> Rows:
    return pairs(content, split_keys=None if keys is None else tuple(keys))


def dialogues(*contents: str, untrained: tuple[tuple[int, ...], ...] | None = None) -> Rows:
    """Return conversations from their turns, separated by `/`: user and assistant in turn, the
    answer last."""
    conversations = []
    answers = []
    for content in contents:
        *turns, answer = content.split("/")
        conversations.append(tuple(zip(("user", "assistant") * len(turns), turns, strict=False)))
        answers.append(answer)
    return build.rows(
        list(map(text_of, conversations)),
        answers,
        conversations=tuple(conversations),
        untrained_turns=untrained or ((),) * len(answers),
    )


Pairs = list[tuple[str, str]]
BASE = (("fever", "a"), ("cough", "b"))
few_texts = st.sampled_from(
    ["Pain", "pain ", "PAIN!", "rash", "Rash", "itch", "", " ", "burn", "cold", "ache"]
)
pair_lists = st.lists(st.tuples(few_texts, st.sampled_from("ab")), max_size=12)


@given(train=pair_lists, validation=pair_lists, test=pair_lists)
def test_cleaning_leaves_each_text_in_one_split_and_counts_what_it_drops(
    train: Pairs, validation: Pairs, test: Pairs
) -> None:
    # Each split has a unique row, so that cleaning succeeds.
    splits = Splits(
        train=rows(*BASE, *train),
        validation=rows(("only in validation", "a"), *validation),
        test=rows(("only in test", "b"), *test),
    )
    cleaned, report = clean(splits)
    texts = [{letters_and_digits(text) for text in part.texts} for _, part in cleaned.items()]
    assert sum(map(len, texts)) == len(set.union(*texts))
    assert cleaned.test == splits.test
    row_ids = [int(row) for row in cleaned.train.row_ids]
    assert row_ids == sorted(row_ids)
    assert cleaned.train.texts == tuple(splits.train.texts[row] for row in row_ids)
    assert clean(cleaned)[0] == cleaned

    dropped = len(splits.train) - len(cleaned.train)
    assert report.train_copies_of_test + report.train_copies_of_validation == dropped
    assert report.validation_copies_of_test == len(splits.validation) - len(cleaned.validation)


def test_conflicting_labels_empty_texts_and_rare_classes_are_counted() -> None:
    many = tuple((f"text {number}", "a") for number in range(12))
    splits = Splits(
        train=rows(*many, ("Fever", "a"), ("fever", "b"), (" ", "a")),
        validation=rows(("cough", "a")),
        test=rows(("burn", "b"), ("", "a")),
    )
    _, report = clean(splits)
    assert report.conflicting_texts == 1
    assert report.empty_texts == 2
    assert report.rare_classes == ("b",)
    assert report.num_classes == 2


CARD = "my new card has not arrived yet, please tell me where it is"
BILL = "the bill of the clinic for my last stay was sent to an old address of mine"
UNRELATED = tuple((f"an unrelated complaint of patient {number}", "b") for number in range(20))


def test_near_copies_leave_train_and_validation_like_copies_and_are_counted() -> None:
    splits = Splits(
        train=rows(
            *BASE,
            (CARD.replace("yet", "here"), "a"),
            (f"Hello, {CARD}", "b"),
            (f"{CARD}!", "b"),
            (f"Hello, {BILL}", "a"),
        ),
        validation=rows((CARD.upper(), "a"), (CARD.replace("please", "do"), "a"), (BILL, "a")),
        test=rows((CARD, "a"), (CARD.replace("new", "other"), "a"), *UNRELATED),
    )
    cleaned, report = clean(splits)
    # The label of a near copy is the same, that of a copy any.
    assert cleaned.train.row_ids == ("0", "1", "3")
    assert cleaned.validation.row_ids == ("2",)
    assert cleaned.test == splits.test
    assert report.train_copies_of_test == report.validation_copies_of_test == 2
    assert report.train_copies_of_validation == 1
    assert report.near_copies == 3
    assert (report.test_documents, report.largest_test_document) == (21, 2)


def test_an_earlier_turn_that_answers_a_row_of_a_later_split_is_not_trained_on() -> None:
    splits = Splits(
        train=dialogues(
            "Q1 /a1/thanks/welcome",
            "q2/a2/more/yes/thanks/welcome",
            "q3/a3/q4/a4",
            "q1/a1",
            untrained=((), (), (1,), ()),
        ),
        validation=dialogues("q2/a2", "q3/a3"),
        test=dialogues("q1/a1", "q2/a2/more/yes"),
    )
    cleaned, report = clean(splits)
    assert cleaned.train.row_ids == ("0", "1", "2")
    assert cleaned.train.untrained_turns == ((1,), (1, 3), (1,))
    assert cleaned.train.conversations == tuple(splits.train.conversations or ())[:3]
    assert (report.train_copies_of_test, report.train_copies_of_validation) == (1, 0)
    assert report.untrained_turns == 3
    again, second = clean(cleaned)
    assert again == cleaned
    assert second.untrained_turns == 0


def test_near_copies_and_answers_are_compared_with_every_trained_turn() -> None:
    splits = Splits(
        train=dialogues(f"Hello, {CARD}/N13/and of the duct/K83", "itch/l29 /pain/R52"),
        validation=dialogues("ache/R10"),
        test=dialogues(f"{CARD}/N13", "burn/L29"),
    )
    cleaned, report = clean(splits)
    assert cleaned.train.untrained_turns == ((1,), ())
    assert (report.untrained_turns, report.test_answers_in_train) == (1, 1)


def test_a_split_by_value_in_two_splits_is_rejected_without_the_value() -> None:
    splits = Splits(
        train=rows(*BASE, keys=["p1", "p2"]),
        validation=rows(("rash", "a"), keys=["p3"]),
        test=rows(("itch", "b"), ("burn", "b"), keys=["p2", "p4"]),
    )
    with pytest.raises(DataError, match=r"1 values .* train and test") as error:
        clean(splits)
    assert "p2" not in str(error.value)
    copied = rows(*BASE, ("Itch", "a"), keys=["p1", "p5", "p2"])
    assert len(clean(replace(splits, train=copied))[0].train) == 2


VALID = {"train": rows(*BASE), "validation": rows(("rash", "a")), "test": rows(("itch", "b"))}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("train", []),
        ("validation", []),
        ("test", []),
        ("validation", [("Itch", "a")]),  # empty after cleaning
        ("train", [("fever", "a")]),
        ("validation", [("burn", "c"), ("cold", "c"), ("ache", "a")]),
        ("test", [("burn", "c"), ("cold", "c"), ("ache", "a")]),
    ],
)
def test_a_split_without_rows_or_with_unusable_classes_is_rejected(
    name: str, content: list[tuple[str, str]]
) -> None:
    clean(Splits(**VALID))
    with pytest.raises(DataError, match=name):
        clean(Splits(**VALID | {name: rows(*content)}))


def test_a_label_without_training_rows_after_cleaning_is_rejected() -> None:
    test = rows(("itch", "c"), ("burn", "c"))
    with pytest.raises(DataError, match="not in train: 'c'"):
        clean(Splits(**VALID | {"train": rows(*BASE, ("itch", "c")), "test": test}))


def test_a_subset_of_the_training_rows_has_a_row_of_each_class() -> None:
    train = rows(*[(f"text {number}", "a") for number in range(30)], *BASE)
    assert take_training_rows(train, size=None, seed=0) is train
    part = take_training_rows(train, size=3, seed=0)
    assert sorted(part.labels) == ["a", "a", "b"]
    with pytest.raises(DataError, match="max_train_rows"):
        take_training_rows(train, size=1, seed=0)
