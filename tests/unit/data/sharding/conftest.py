"""A data config whose training rows are sharded."""

from pathlib import Path

import pytest

from tailorbird.config.data import DataConfig
from tailorbird.data.sharding import loading, worker
from tests.small_chat import tokenizer
from tests.unit.data.sharding.small import NEAR_COPY, VALIDATION, texts_of, write


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(loading, "MAX_ROWS_IN_MEMORY", 500)
    monkeypatch.setattr(worker, "_tokenizer", lambda _: tokenizer())
    train = [*texts_of(1000), "Copied  test", "copied validation", " ", NEAR_COPY]
    return DataConfig(
        train=write(tmp_path, train),
        validation=write(tmp_path, VALIDATION, name="validation", key=["u", "v", "w"]),
        test=write(tmp_path, ["copied test", "test b"], name="test", key=["s", "t"]),
        split_by="key",
    )
