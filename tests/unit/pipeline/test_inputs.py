"""Inputs of a run are checked before anything is computed."""

from dataclasses import replace

import pytest

from tailorbird.config.answers import AnswersConfig
from tailorbird.data.rows import DataError, Rows, Splits
from tailorbird.pipeline.inputs import require_readable_answers


def test_a_test_row_whose_answer_has_no_value_is_refused_with_its_id() -> None:
    answers = AnswersConfig.model_validate({"numeric": {}})
    rows = Rows(("7", "8"), ("a", "b"), ("1", "2"), conversations=((("user", "a"),),) * 2, answers=answers)
    faulty = replace(rows, labels=("1", "two"))
    require_readable_answers(Splits(faulty, rows, rows))
    with pytest.raises(DataError, match=r"the answer of test row 8 has no number; correct the row, or evaluation\."):
        require_readable_answers(Splits(rows, rows, faulty))
    with pytest.raises(DataError, match="the answer of validation row 8 has no number"):
        require_readable_answers(Splits(rows, faulty, rows))
