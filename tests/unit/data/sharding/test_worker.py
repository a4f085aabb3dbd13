"""Sharding without Ray: grouping of row groups, files and reports."""

from pathlib import Path

import numpy as np
import pytest

from tailorbird.config.data import DataConfig
from tailorbird.data.rows import DataError
from tailorbird.data.sharding import worker
from tailorbird.data.sharding.shards import Shards
from tailorbird.data.sharding.worker import read_sample, write_shard
from tailorbird.data.task_data import ChatData
from tailorbird.data.tokenized import TokenizedRows
from tests.small_chat import tokenizer
from tests.unit.data.parquet_rows import config_of, put
from tests.unit.data.sharding.small import evaluated, job_of, texts_of, write


def test_the_sample_in_memory_has_a_row_of_every_class(tmp_path: Path) -> None:
    labels = [f"c{index}" for index in range(40)] * 3
    uri = write(tmp_path, texts_of(120), label=labels)
    config = DataConfig(train=uri)
    (spec,) = worker.shard_specs(config)
    report = write_shard(spec, job_of(config, tmp_path, sample_share=0.01), tokenizer())
    sample = read_sample((tmp_path / "shards").as_uri(), num_files=1)
    assert set(sample.labels) == set(labels) == set(report.labels)
    assert len(sample) < 60


def test_row_groups_are_combined_but_not_split_and_an_error_names_the_position_in_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "BATCH_ROWS", 64)
    monkeypatch.setattr(worker, "SHARD_ROWS", 150)
    texts: list[str | None] = [*texts_of(230), None]
    first = write(tmp_path, texts_of(70), name="a")
    second = write(tmp_path, texts_of(231), name="b", text=texts)
    config = DataConfig(train=(first, second))
    *valid, faulty = worker.shard_specs(config)
    assert [spec.row_groups for spec in (*valid, faulty)] == [(0,), (0, 1), (2,)]
    assert [spec.num_rows for spec in (*valid, faulty)] == [70, 200, 31]
    assert (valid[1].first, valid[1].first_in_file) == (70, 0)
    assert (faulty.first, faulty.first_in_file) == (270, 200)
    write_shard(valid[0], job_of(config, tmp_path), tokenizer())
    with pytest.raises(DataError, match=r"b\.parquet.*first in row 230"):
        write_shard(faulty, job_of(config, tmp_path), tokenizer())
    assert not (tmp_path / "shards" / "000002.arrow").exists()
    assert not (tmp_path / "shards" / "000002.json").exists()


def test_a_shard_of_an_interrupted_run_is_not_written_again(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spec,) = worker.shard_specs(config)
    report = write_shard(spec, job_of(config, tmp_path), tokenizer())
    monkeypatch.setattr(worker, "_batches", lambda *_: pytest.fail("it is read again"))
    assert write_shard(spec, job_of(config, tmp_path), tokenizer()) == report


def test_an_earlier_turn_that_answers_an_evaluation_row_is_written_without_its_mask(
    tmp_path: Path,
) -> None:
    talk = [("user", "a b"), ("assistant", "d"), ("user", "c"), ("assistant", "e f")]
    messages = [[{"role": role, "content": content} for role, content in talk]] * 3
    uri = put(tmp_path / "train.parquet", messages=messages)
    config = config_of(uri, messages="messages")
    (spec,) = worker.shard_specs(config)
    copied = evaluated(test=["a b"], validation=["a b"])
    job = job_of(config, tmp_path, task=ChatData(), sample_share=1.0, evaluated=copied)
    report = write_shard(spec, job, tokenizer())
    assert (report.num_rows, report.copies, report.labels) == (3, {"turns": 3}, {})
    sample = read_sample(job.uri, num_files=1)
    assert sample.untrained_turns == ((1,),) * 3

    shards = Shards(job.uri, sizes=(3,), classes=())
    rows = shards.read(shards.chunks())
    tokens = ChatData().encode(sample, tokenizer=tokenizer(), max_length=16)
    expected = TokenizedRows.from_lists(sample.row_ids, tokens, classes=())
    for name in ("ids", "offsets", "assistant_mask"):
        np.testing.assert_array_equal(getattr(rows, name), getattr(expected, name))
    assert rows.num_assistant_tokens(range(len(rows))) > len(rows)
