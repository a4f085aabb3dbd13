"""Streaming without Ray: which pieces rows are cut into, what is written of a piece and what is told of it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tailorbird import storage
from tailorbird.config.data import DataConfig
from tailorbird.data import sharding
from tailorbird.data.loader import read_splits
from tailorbird.data.quality import clean
from tailorbird.data.rows import DataError, Rows, joined
from tailorbird.data.sharding import Job, held, streamed, write_piece
from tailorbird.data.shards import Shards
from tailorbird.data.tokenized import Encoding, encode_rows
from tests.small_chat import tokenizer


def write(folder: Path, texts: Sequence[str], *, name: str = "train", group_rows: int = 100, **columns: object) -> str:
    labels = ["ab"[len(text) % 2] for text in texts]
    table = pa.table(
        {"text": list(texts), "label": labels, "key": [f"k{place}" for place in range(len(texts))]} | columns
    )
    path = folder / f"{name}.parquet"
    pq.write_table(table, path, row_group_size=group_rows)
    return path.as_uri()


def texts_of(num: int) -> list[str]:
    return [
        "abcdefgh"[place % 8] * (1 + place % 50) + " " + "xyz"[place % 3] * (1 + place // 50) for place in range(num)
    ]


@pytest.fixture
def section(tmp_path: Path) -> DataConfig:
    train = [*texts_of(1000), "Copied  test", "copied validation", " "]
    return DataConfig(
        train=write(tmp_path, train),
        validation=write(
            tmp_path, ["copied validation", "validation b", "copied test"], name="validation", key=["k1", "v", "w"]
        ),
        test=write(tmp_path, ["copied test", "test b"], name="test", key=["t", "k2"]),
        split_by="key",
        stream_above_rows=500,
    )


def job_of(config: DataConfig, folder: Path, **fields: object) -> Job:
    values = {
        "section": config,
        "encoding": Encoding(max_length=16),
        "base_model": "",
        "uri": (folder / "shards").as_uri(),
        "share": 0.2,
        "texts": {"test": frozenset({"copied test"}), "validation": frozenset({"copied validation", "copied test"})},
        "keys": frozenset({"k1", "k2", "t"}),
    }
    return Job(**values | fields)  # type: ignore[arg-type]


def test_row_groups_are_put_together_and_never_cut(config: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "SHARD_ROWS", 250)
    pieces = list(sharding._pieces(config))
    assert [piece.groups for piece in pieces] == [(0, 1, 2), (3, 4, 5), (6, 7, 8), (9, 10)]
    assert [piece.first for piece in pieces] == [piece.start for piece in pieces] == [0, 300, 600, 900]
    assert [piece.num_rows for piece in pieces] == [300, 300, 300, 103]


def test_a_piece_is_written_without_copies_and_told_of(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sharding, "BATCH_ROWS", 64)
    (piece,) = sharding._pieces(config)
    told = write_piece(piece, job_of(config, tmp_path), tokenizer())
    assert told["num_rows"] == 1001
    assert told["copies"] == {"test": 1, "validation": 1}
    assert told["num_empty"] == 1
    assert told["shared_keys"] == ["k1", "k2"]
    assert sum(told["labels"].values()) == 1001
    shards = Shards((tmp_path / "shards").as_uri(), (1001,), ("a", "b"))
    found = shards.read(shards.chunks())
    assert found.row_ids == (*(str(place) for place in range(1000)), "1002")
    whole = read_splits(config).train
    assert found.tokens(range(50)) == Encoding(16).tokens(whole.take(range(50)), tokenizer=tokenizer())[0]
    kept = sharding._held(shards.uri, num_files=1)
    assert 150 < len(kept) < 260
    assert set(kept.row_ids) < set(found.row_ids)
    assert len(set(kept.row_ids)) == len(kept)


def test_every_class_has_a_row_in_memory(tmp_path: Path) -> None:
    labels = [f"c{place}" for place in range(40)] * 3
    uri = write(tmp_path, texts_of(120), label=labels)
    config = DataConfig(train=uri)
    (piece,) = sharding._pieces(config)
    told = write_piece(piece, job_of(config, tmp_path, share=0.01), tokenizer())
    kept = sharding._held((tmp_path / "shards").as_uri(), num_files=1)
    assert set(kept.labels) == set(labels) == set(told["labels"])
    assert len(kept) < 60


def test_what_is_wrong_is_told_with_its_row_in_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "BATCH_ROWS", 64)
    texts: list[str | None] = [*texts_of(150), None]
    first, second = write(tmp_path, texts_of(70), name="a"), write(tmp_path, texts_of(151), name="b", text=texts)
    config = DataConfig(train=(first, second))
    one, other = sharding._pieces(config)
    assert (other.first, other.start) == (70, 0)
    write_piece(one, job_of(config, tmp_path), tokenizer())
    told = r"b\.parquet: column 'text' is null in 1 of 23 rows from row 128 on \(first: row 150\)"
    with pytest.raises(DataError, match=told):
        write_piece(other, job_of(config, tmp_path), tokenizer())
    assert not (tmp_path / "shards" / "000001.arrow").exists()
    assert not (tmp_path / "shards" / "000001.json").exists()


def test_a_piece_that_an_interrupted_run_wrote_is_not_written_again(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (piece,) = sharding._pieces(config)
    told = write_piece(piece, job_of(config, tmp_path), tokenizer())
    monkeypatch.setattr(sharding, "_batches", lambda *_: pytest.fail("it is read again"))
    assert write_piece(piece, job_of(config, tmp_path), tokenizer()) == json.loads(json.dumps(told))


def test_conversations_are_written_with_what_was_said(tmp_path: Path) -> None:
    table = pa.table({"prompt": ["a b", "c"] * 20, "completion": ["d", "e f"] * 20})
    pq.write_table(table, tmp_path / "train.parquet")
    config = DataConfig(train=(tmp_path / "train.parquet").as_uri())
    encoding = Encoding(16, chat=True)
    (piece,) = sharding._pieces(config)
    job = job_of(config, tmp_path, encoding=encoding, share=1.0, texts={"test": frozenset(), "validation": frozenset()})
    told = write_piece(piece, job, tokenizer())
    assert (told["num_rows"], told["labels"]) == (40, {})
    shards = Shards(job.uri, (40,), ())
    found = shards.read(shards.chunks())
    kept = sharding._held(job.uri, num_files=1)
    wanted = encode_rows(kept, encoding, tokenizer=tokenizer(), classes=())
    assert np.array_equal(found.ids, wanted.ids)
    assert np.array_equal(found.offsets, wanted.offsets)
    assert found.said is not None
    assert wanted.said is not None
    assert np.array_equal(found.said, wanted.said)
    assert found.num_said(range(40)) == wanted.said.sum() > 40


def test_under_the_size_rows_are_held_in_memory(config: DataConfig) -> None:
    asked = config.model_copy(update={"stream_above_rows": 1003, "max_train_rows": 100})
    found = held(asked, chat=False, seed=0)
    assert found is not None
    assert found.shards is None
    assert found.num_train == len(found.splits.train) == 100
    assert found.report == clean(read_splits(config))[1]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"validation": None}, "name data.validation and data.test too"),
        ({"test": None, "validation": None}, "name data.validation and data.test too"),
        ({"max_train_rows": 10}, "leave out data.max_train_rows"),
    ],
)
def test_what_cannot_be_streamed_is_refused(config: DataConfig, fields: dict[str, object], said: str) -> None:
    asked = config.model_copy(update=fields)
    with pytest.raises(DataError, match=rf"more than data.stream_above_rows 500 rows and is streamed: {said}"):
        streamed(asked, Encoding(16), base_model="", task_uri="", inputs={})


def test_streamed_rows_are_told_of_as_held_ones(
    config: DataConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tasks run here one after the other; Ray Data runs them in the integration test."""
    told: list[dict[str, object]] = []

    def run(pieces: Sequence[sharding.Piece], job: Job) -> list[dict[str, object]]:
        new = [write_piece(piece, job, tokenizer()) for piece in pieces]
        told.extend(new)
        return new

    monkeypatch.setattr(sharding, "SHARD_ROWS", 250)
    monkeypatch.setattr(sharding, "_run", run)
    task_uri = (tmp_path / "home").as_uri()
    found = streamed(config, Encoding(16), base_model="", task_uri=task_uri, inputs={})
    assert held(config, chat=False, seed=0) is None
    held_splits, in_memory = clean(read_splits(config))
    assert found.shards is not None
    assert found.num_train == len(found.shards) == in_memory.num_train == 1001
    assert found.shards.sizes == (300, 300, 300, 101)
    assert found.shards.classes == ("a", "b")
    assert found.report.num_in_memory == len(found.splits.train)
    counted_in_memory = {"conflicting_texts", "near_duplicates_of_test", "near_duplicates_of_validation"}
    told_of = found.report.to_dict().keys() - counted_in_memory - {"num_in_memory"}
    assert {name: found.report.to_dict()[name] for name in told_of} == {
        name: in_memory.to_dict()[name] for name in told_of
    }
    assert found.hashes.keys() == {"train", "validation", "test"}
    assert found.splits.validation == held_splits.validation
    streamed(config, Encoding(16), base_model="", task_uri=task_uri, inputs={})
    assert len(told) == 4  # found again
    storage.write_bytes(str(config.train), storage.read_bytes(str(config.train)))
    streamed(config, Encoding(16), base_model="", task_uri=task_uri, inputs={})
    assert len(told) == 8  # the file was written anew


def test_json_and_back_rows_are_the_same() -> None:
    rows = Rows(
        ("0",),
        ("t",),
        ("l",),
        split_keys=("k",),
        groups={"g": ("x",)},
        conversations=((("user", "a"), ("assistant", "b")),),
    )
    assert Rows.from_dict(json.loads(json.dumps(asdict(rows)))) == rows
    assert joined([rows, rows]) == rows.take([0, 0])
