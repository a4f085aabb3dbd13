"""A data config whose training rows are sharded."""

from pathlib import Path

import pytest

from tailorbird.config.data import DataConfig
from tailorbird.data.sharding import loading
from tests.unit.data.sharding.small import LONG, NEAR_COPY, texts_of, write


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DataConfig:
    monkeypatch.setattr(loading, "MAX_ROWS_IN_MEMORY", 500)
    train = [*texts_of(1000), "Copied  test", "copied validation", " ", NEAR_COPY]
    return DataConfig(
        train=write(tmp_path, train),
        validation=write(
            tmp_path,
            ["copied validation", LONG, "copied test"],
            name="validation",
            key=["u", "v", "w"],
        ),
        test=write(tmp_path, ["copied test", "test b"], name="test", key=["s", "t"]),
        split_by="key",
    )
