"""Nearest training rows: similarity, order, limits, exclusions."""

import numpy as np
import pytest

from tailorbird.data.rows import DataError, Rows, concat_rows
from tailorbird.models.retrieval import index as retrieval
from tailorbird.models.retrieval.index import build_index
from tests import build
from tests.build import pairs

PAIRS = (
    ("acute bronchitis", "J20"),
    ("chronic bronchitis", "J42"),
    ("fracture of the femur", "S72"),
    ("fractured thigh bone", "S72"),
    ("open fracture of femur", "S72"),
)


def rows_of(
    content: tuple[tuple[str, str], ...] = PAIRS, *, keys: tuple[str, ...] | None = None
) -> Rows:
    return pairs(content, chat=True, split_keys=keys)


def test_a_copy_has_similarity_one_and_other_rows_have_less() -> None:
    index = build_index(rows_of(), seed=0)
    neighbours = index.nearest("  ACUTE bronchitis ", k=5)
    assert neighbours.similarities[0] == pytest.approx(1, abs=1e-6)
    assert (np.diff(neighbours.similarities) <= 0).all()
    assert len(set(neighbours.rows.tolist())) == 5
    [unknown] = index.nearest("acute bronchitis qqxxyyzz", k=1).similarities
    assert unknown < 0.9
    megabyte = "acute bronchitis" + " " * retrieval.MAX_TEXT_CHARACTERS + "femur " * 200_000
    assert index.nearest(megabyte, k=1).similarities[0] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("text", ["", "qqxxyyzz", "\ud800"])
def test_a_text_without_a_known_n_gram_gets_the_most_frequent_answer_with_similarity_0(
    text: str,
) -> None:
    index = build_index(rows_of(), seed=0)
    neighbours = index.nearest(text, k=2)
    assert [index.answer(row) for row in neighbours.rows] == ["S72", "S72"]
    assert neighbours.similarities.tolist() == [0, 0]
    index = build_index(rows_of((("", "a"), (" ", "b"), ("", "a"))), seed=0)
    assert len(index) == 2
    assert index.answer(index.nearest(text, k=1).rows[0]) == "a"


SYSTEM_ONLY = build.rows(("s",), ("a",), conversations=((("system", "s"),),))


@pytest.mark.parametrize("rows", [rows_of().take([]), SYSTEM_ONLY])
def test_training_rows_without_a_question_are_refused(rows: Rows) -> None:
    with pytest.raises(DataError):
        build_index(rows, seed=0)


def test_a_row_without_a_turn_of_the_user_is_not_indexed() -> None:
    copies = (("Acute  Bronchitis", "J20"), ("acute bronchitis", "J21"))
    rows = concat_rows([rows_of((*PAIRS, *copies)), SYSTEM_ONLY])
    index = build_index(rows, seed=0)  # copies with the same answer are indexed once
    answers = sorted(index.answer(row) for row in range(len(index)))
    assert answers == ["J20", "J21", "J42", "S72", "S72", "S72"]


def test_every_turn_that_is_trained_on_is_indexed_with_the_trained_turns_before_it() -> None:
    turns = (
        ("user", "where"),
        ("assistant", "here"),
        ("user", "when"),
        ("assistant", "now"),
        ("user", "why"),
    )
    system = (("system", "s"), *turns[:1])
    rows = build.rows(
        ("", "", ""),
        ("so", "so", "here"),
        conversations=(turns, turns, system),
        untrained_turns=((), (1, 3), ()),
    )
    index = build_index(rows, seed=0)
    examples = {index.turns(row) for row in range(len(index))}
    assert examples == {(*turns[:2],), (*turns[:4],), (*turns, ("assistant", "so"))}
    index = build_index(rows.take([1]), seed=0)
    assert [index.turns(row) for row in range(len(index))] == [
        (("user", "why"), ("assistant", "so"))
    ]


def test_rows_and_the_n_grams_of_a_text_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(retrieval, "MAX_ROWS", 3)
        assert len(build_index(rows_of(), seed=0)) == 3
    monkeypatch.setattr(retrieval, "MAX_TEXT_NGRAMS", 5)
    index = build_index(rows_of(), seed=0)
    assert np.bincount(index.postings.matrix.indices).max() == 5
    [neighbour] = index.nearest(PAIRS[1][0], k=1).rows
    assert index.answer(neighbour) == "J42"


def test_a_search_reads_the_rarest_n_grams_within_its_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    index = build_index(rows_of(), seed=0)
    whole = index.nearest("chronic bronchitis", k=1)
    monkeypatch.setattr(retrieval, "MAX_POSTINGS", 5)
    limited = index.nearest("chronic bronchitis", k=1)
    assert index.answer(limited.rows[0]) == "J42"
    assert 0 < limited.similarities[0] < whole.similarities[0]
