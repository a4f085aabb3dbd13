"""Rows in memory and in shards are checked and reported in the same way."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.config.recipe import Recipe
from tailorbird.data.fingerprints import fingerprints
from tailorbird.data.loader import read_splits
from tailorbird.data.quality import clean
from tailorbird.data.rows import DataError
from tailorbird.data.sharding import loading, worker
from tailorbird.data.sharding.loading import LoadedDataset, load_in_memory, load_sharded
from tailorbird.data.sharding.worker import ShardReport, ShardSpec
from tailorbird.data.task_data import CLASSIFICATION
from tests.build import recipe
from tests.unit.data.sharding.small import write


def recipe_of(config: DataConfig, folder: Path) -> Recipe:
    return recipe(data=config, registry=folder.as_uri())


def sharded(config: DataConfig, folder: Path, **options: Any) -> LoadedDataset:
    of_data = recipe_of(config, folder)
    return load_sharded(of_data, CLASSIFICATION, base_model="", inputs={}, **options)


@pytest.mark.parametrize(
    "fields",
    [{"validation": None}, {"test": None, "validation": None}, {"max_train_rows": 10}],
)
def test_recipes_that_cannot_be_sharded_are_rejected(
    config: DataConfig, tmp_path: Path, fields: dict[str, object]
) -> None:
    unshardable = config.model_copy(update=fields)
    with pytest.raises(DataError):
        sharded(unshardable, tmp_path)


def test_sharded_rows_have_the_same_report_as_rows_in_memory(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks run here without Ray, which the integration tests use."""
    reports: list[ShardReport] = []

    def run(
        write: Callable[[ShardSpec], ShardReport], specs: Sequence[ShardSpec]
    ) -> list[ShardReport]:
        written = list(map(write, specs))
        reports.extend(written)
        return written

    def load() -> LoadedDataset:
        return sharded(config, tmp_path, map_tasks=run)

    monkeypatch.setattr(worker, "SHARD_ROWS", 250)
    assert load_in_memory(recipe_of(config, tmp_path)) is None
    dataset = load()
    monkeypatch.setattr(loading, "MAX_ROWS_IN_MEMORY", 1004)
    whole = load_in_memory(recipe_of(config, tmp_path))
    monkeypatch.setattr(loading, "MAX_ROWS_IN_MEMORY", 500)
    splits, in_memory = clean(read_splits(config))
    assert whole is not None
    assert whole.report == in_memory
    assert dataset.shards is not None
    assert dataset.num_train == len(dataset.shards) == in_memory.num_train == 1001
    assert dataset.shards.sizes == (300, 300, 300, 101)
    assert dataset.shards.classes == ("a", "b")
    assert dataset.report.num_in_memory == len(dataset.splits.train) == pytest.approx(500, abs=90)
    report, expected = asdict(dataset.report), asdict(in_memory)
    for name in report.keys() - {"conflicting_texts", "num_in_memory"}:
        assert report[name] == expected[name], name
    assert dataset.hashes.keys() == {"train", "validation", "test"}
    assert dataset.splits.validation == splits.validation
    of_all_rows = LoadedDataset(splits, in_memory, dataset.hashes).learned_rows(in_memory=False)
    np.testing.assert_array_equal(
        np.unique(dataset.learned_rows(in_memory=False)), np.unique(of_all_rows)
    )
    of_sample = fingerprints(splits.validation.texts + dataset.splits.train.texts)
    np.testing.assert_array_equal(dataset.learned_rows(in_memory=True), of_sample)
    load()
    assert len(reports) == 4  # the stage is cached
    storage.write_bytes(str(config.train), storage.read_bytes(str(config.train)))
    load()
    assert len(reports) == 8  # the file was written again


def test_a_split_by_value_of_a_streamed_row_in_another_split_is_rejected(
    config: DataConfig, tmp_path: Path
) -> None:
    shared = config.model_copy(
        update={"test": write(tmp_path, ["copied test", "test b"], name="other", key=["s", "k7"])}
    )
    with pytest.raises(DataError):
        sharded(shared, tmp_path)


@pytest.mark.parametrize("limit", [500, 5000])  # rows are sharded, or in memory
def test_a_description_of_a_label_without_training_rows_is_rejected(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(loading, "MAX_ROWS_IN_MEMORY", limit)
    descriptions = {"a": "even length", "c": "another length"}
    described = config.model_copy(update={"label_descriptions": descriptions})
    with pytest.raises(DataError, match=r"label_descriptions.*'c'"):
        load_in_memory(recipe_of(described, tmp_path)) or sharded(described, tmp_path)
