from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from tailorbird.data.fingerprints import (
    fingerprints,
    letters_and_digits,
    load_fingerprints,
    save_fingerprints,
    trained_fingerprints,
)
from tailorbird.data.rows import DataError
from tests.build import rows
from tests.unit.data.parquet_rows import put


def test_letters_with_their_marks_and_digits_are_compared() -> None:
    assert letters_and_digits("हिन्दी, में\u200b") == "हिन्दी में"
    assert letters_and_digits(" Ｈｅｌｌｏ,  WORLD 2!\n") == "hello world 2"


def test_texts_without_letters_differ() -> None:
    assert len(np.unique(fingerprints(["...", "?!", ""]))) == 3


def test_each_turn_that_is_trained_on_is_known_by_the_turns_of_the_user_before_it() -> None:
    conversation = (
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Why?"),
        ("assistant", "So"),
        ("user", "How?"),
    )
    conversations = rows(["all"], conversations=(conversation,), untrained_turns=((4,),))
    expected = fingerprints(["Hi", "Hi\nWhy?\nHow?"])
    np.testing.assert_array_equal(trained_fingerprints(conversations), expected)


def test_stored_fingerprints_are_distinct_and_sorted(tmp_path: Path) -> None:
    uri = (tmp_path / "rows.parquet").as_uri()
    for texts in (["b", "a", "c", "a"], []):
        save_fingerprints(uri, fingerprints(texts))
        np.testing.assert_array_equal(load_fingerprints(uri), np.unique(fingerprints(texts)))


@pytest.mark.parametrize("values", [pa.array([1, None], pa.uint64()), pa.array([1], pa.int64())])
def test_another_column_is_refused(tmp_path: Path, values: pa.Array) -> None:
    with pytest.raises(DataError):
        load_fingerprints(put(tmp_path / "rows.parquet", fingerprint=values))
