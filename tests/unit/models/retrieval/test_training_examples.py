"""Examples of training rows: the nearest other rows."""

from pathlib import Path

from tailorbird.data.rows import Rows
from tailorbird.models.retrieval.training_examples import RetrievedExamples, find_examples
from tailorbird.registry.versions import Retrieval
from tests import build, small_encoder

QUESTIONS = ("blue sky", "Blue  sky", "blue skies", "blue sky at noon", "green leaf", "red rose")
KEYS = ("a", "b", "b", "a", "c", "d")


def rows_of(*, keys: tuple[str, ...] | None = KEYS) -> Rows:
    turns = tuple((("user", question.lower()),) for question in QUESTIONS)
    ids = tuple(str(number) for number in range(len(QUESTIONS)))
    return Rows(
        ids,
        QUESTIONS,
        tuple(f"answer {number}" for number in ids),
        split_keys=keys,
        conversations=turns,
    )


def retrieval_of(num_examples: int) -> Retrieval:
    return Retrieval(num_examples=num_examples, max_prompt_tokens=100, index_sha256="")


def answers_of(examples: RetrievedExamples) -> list[list[str]]:
    index = examples.load_index()
    return [[index.answer(row) for row in rows] for rows in examples.rows]


def test_a_row_has_neither_itself_nor_a_copy_nor_a_row_of_its_document_as_an_example(
    tmp_path: Path,
) -> None:
    answers = answers_of(
        find_examples(rows_of(), retrieval=retrieval_of(2), seed=0, uri=tmp_path.as_uri())
    )
    # Rows 0 and 1 have the same text; rows 0 and 3, and rows 1 and 2, have the same value of
    # `split_by`.
    assert answers[0][0] == "answer 2"
    assert not {"answer 0", "answer 1", "answer 3"} & set(answers[0])
    assert answers[1][0] == "answer 3"
    assert not {"answer 0", "answer 1", "answer 2"} & set(answers[1])
    assert answers[2][0] in ("answer 0", "answer 3")
    assert all(f"answer {number}" not in examples for number, examples in enumerate(answers))
    rows = rows_of(keys=None)
    without_documents = find_examples(
        rows, retrieval=retrieval_of(1), seed=0, uri=(tmp_path / "other").as_uri()
    )
    assert answers_of(without_documents)[3] in (["answer 0"], ["answer 1"])


def test_with_an_encoder_the_examples_are_the_nearest_rows_by_its_embeddings(
    tmp_path: Path,
) -> None:
    encoder = small_encoder.save(tmp_path / "encoder")
    questions = ("azure sky", "red sky at noon", "blue sky")
    turns = tuple((("user", question),) for question in questions)
    rows = build.rows(questions, ("azure", "noon", "blue"), conversations=turns)
    plain = find_examples(
        rows, retrieval=retrieval_of(1), seed=0, uri=(tmp_path / "plain").as_uri()
    )
    retrieval = retrieval_of(1).model_copy(update={"encoder": encoder, "embedding_weight": 1.0})
    examples = find_examples(rows, retrieval=retrieval, seed=0, uri=(tmp_path / "index").as_uri())
    # Row 0 has the same embedding as row 2, and never itself as an example.
    assert answers_of(examples)[0] == ["blue"]
    assert answers_of(examples)[2] == ["azure"]
    assert examples.retrieval.encoder == encoder
    assert examples.retrieval.index_sha256 != plain.retrieval.index_sha256
