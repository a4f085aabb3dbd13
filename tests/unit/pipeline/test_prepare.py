"""The requester has a name wherever a run is started, and rows that cannot be trained on are refused at once."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird.config.recipe import Recipe
from tailorbird.data.rows import DataError
from tailorbird.pipeline import inputs
from tailorbird.pipeline.prepare import current_user
from tests import small_chat


def test_a_user_without_a_name_is_known_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert current_user() == f"uid {os.getuid()}"


@pytest.mark.parametrize(("task", "metric"), [("classification", "accuracy"), ("chat", "token_f1")])
def test_rows_longer_than_the_base_model_reads_are_refused_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str, metric: str
) -> None:
    texts = [f"number {number}" for number in range(60)]
    columns = {"text": texts, "label": ["x", "y"] * 30, "prompt": texts, "completion": texts}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    monkeypatch.setattr(inputs, "stage_base_model", lambda *_, **__: (tmp_path / "model").as_uri())
    small_chat.save(tmp_path / "model")
    data = {"train": (tmp_path / "rows.parquet").as_uri(), "max_length": 257}
    named = {"name": "x", "task": task, "base_model": "s3://m/x", "registry": "s3://m"}
    recipe = Recipe.model_validate(named | {"data": data, "evaluation": {"metric": metric}})
    with pytest.raises(DataError, match="max_length 257 is more than the 256 tokens"):
        inputs.load_inputs(recipe)
