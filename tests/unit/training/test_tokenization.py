"""Training rows are tokenized once and give the workers the same tokens as rows that each worker
tokenizes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tailorbird.data.tokenize import load_tokenizer
from tailorbird.data.tokenized import TokenizedRows, concat_tokenized
from tests.small_chat import save
from tests.unit.training.small import rows_of
from tests.unit.training.test_chat_task import task_of
from training.classification_task import ClassificationTrainingTask
from training.dataset import sampled_rows
from training.task import TrainingTask
from training.tokenization import with_tokenized_rows


def classification_task(folder: Path) -> ClassificationTrainingTask:
    save(folder)
    rows = replace(rows_of(23)[0], texts=tuple("abc def "[: 1 + index % 8] for index in range(23)))
    return ClassificationTrainingTask(
        base_model=folder.as_uri(),
        train=rows,
        validation=rows,
        classes=("0", "1", "2"),
        max_length=6,
    )


def chat_task(folder: Path) -> TrainingTask:
    save(folder)
    return task_of(folder.as_uri())


def assert_equal(rows: TokenizedRows, expected: TokenizedRows) -> None:
    assert rows.row_ids == expected.row_ids
    for name in ("ids", "offsets", "assistant_mask", "labels"):
        array, other = getattr(rows, name), getattr(expected, name)
        assert (array is None) == (other is None), name
        if array is not None:
            assert array.dtype == other.dtype
            np.testing.assert_array_equal(array, other)


@pytest.mark.parametrize("make", [classification_task, chat_task])
def test_tokenizing_in_parts_or_before_the_start_gives_the_tokens_of_a_worker(
    tmp_path: Path, make: type
) -> None:
    task: TrainingTask = make(tmp_path)
    tokenizer, size = load_tokenizer(tmp_path), len(task.train)
    expected = sampled_rows(task.dataset(tokenizer))
    parts = [task.tokenize(rows, tokenizer=tokenizer) for rows in (range(2), range(2, size))]
    assert_equal(concat_tokenized(parts), expected)
    tokenized = with_tokenized_rows(task)
    assert isinstance(tokenized.train, TokenizedRows)
    assert_equal(tokenized.train, expected)
    assert with_tokenized_rows(tokenized) is tokenized
    assert (tokenized.validation_tokens is not None) == task.validates_tokens
    if isinstance(task, ClassificationTrainingTask):  # its validation rows are its training rows
        assert tokenized.validation_tokens is not None
        assert_equal(tokenized.validation_tokens, expected)
        assert isinstance(tokenized, ClassificationTrainingTask)
        assert tokenized.validation_rows(tokenizer) is tokenized.validation_tokens
        assert_equal(task.validation_rows(tokenizer), expected)
    assert tokenized.dataset(tokenizer) is tokenized.train
