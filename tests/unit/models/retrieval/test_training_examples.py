"""Examples of training rows: the nearest other rows."""

from pathlib import Path

from tailorbird.data.rows import Rows
from tailorbird.models.retrieval.training_examples import RetrievedExamples, find_examples

QUESTIONS = ("blue sky", "Blue  sky", "blue skies", "blue sky at noon", "green leaf", "red rose")
KEYS = ("a", "b", "b", "a", "c", "d")


def rows_of(*, keys: tuple[str, ...] | None = KEYS) -> Rows:
    turns = tuple((("user", question.lower()),) for question in QUESTIONS)
    ids = tuple(str(number) for number in range(len(QUESTIONS)))
    return Rows(ids, QUESTIONS, tuple(f"answer {number}" for number in ids), split_keys=keys, conversations=turns)


def answers_of(examples: RetrievedExamples) -> list[list[str]]:
    index = examples.load_index()
    return [[index.answer(row) for row in rows] for rows in examples.rows]


def test_a_row_has_neither_itself_nor_a_copy_nor_a_row_of_its_document_as_an_example(tmp_path: Path) -> None:
    answers = answers_of(find_examples(rows_of(), num_examples=2, seed=0, uri=tmp_path.as_uri()))
    # Rows 0 and 1 have the same text; rows 0 and 3, and rows 1 and 2, have the same value of `split_by`.
    assert answers[0][0] == "answer 2"
    assert not {"answer 0", "answer 1", "answer 3"} & set(answers[0])
    assert answers[1][0] == "answer 3"
    assert not {"answer 0", "answer 1", "answer 2"} & set(answers[1])
    assert answers[2][0] in ("answer 0", "answer 3")
    assert all(f"answer {number}" not in examples for number, examples in enumerate(answers))
    without_documents = find_examples(rows_of(keys=None), num_examples=1, seed=0, uri=(tmp_path / "other").as_uri())
    assert answers_of(without_documents)[3] in (["answer 0"], ["answer 1"])
