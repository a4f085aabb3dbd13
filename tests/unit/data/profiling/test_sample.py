from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.data.profiling import sample as profile
from tailorbird.data.profiling.sample import count_rows, read_sample


def test_a_sample_has_the_usable_columns_and_the_names_of_the_others(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"text": ["a b", None], "n": [1, 1], "vector": [0.5, 0.5]}), tmp_path / "a.parquet"
    )
    sample = read_sample(tmp_path.as_uri())
    assert [(column.name, column.values) for column in sample.columns] == [
        ("text", ("a b", None)),
        ("n", ("1", "1")),
    ]
    assert sample.unusable == ("vector (double)",)
    text = sample.column("text")
    assert text is not None
    assert (text.num_null, text.mean_words) == (1, 2.0)
    assert sample.is_whole


def test_row_groups_beyond_the_limit_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profile, "SAMPLE_ROWS", 25)
    for name in ("a", "b"):
        pq.write_table(
            pa.table({"n": list(range(40))}), tmp_path / f"{name}.parquet", row_group_size=10
        )
    sample = read_sample(tmp_path.as_uri())
    assert (sample.num_rows, sample.num_sampled, sample.is_whole) == (80, 30, False)
    assert count_rows(tmp_path.as_uri()) == 80
