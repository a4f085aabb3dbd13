"""Shards: what is written is read again, in the order asked; an epoch's windows hold every chunk once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.rows import DataError, Rows
from tailorbird.data.shards import CHUNK_ROWS, Shards, ShardWriter, window_chunks
from tailorbird.storage.s3 import StorageError

SIZES = (700, 0, 256, 3)
CLASSES = ("a", "b", "c")


def rows_of(first: int, num: int) -> Rows:
    places = range(first, first + num)
    ids = tuple(str(place) for place in places)
    return Rows(ids, ids, tuple(CLASSES[place % 3] for place in places))


def tokens_of(place: int) -> list[int]:
    return [101, *range(place % 7), 102]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    uri, first = tmp_path_factory.mktemp("shards").as_uri(), 0
    for number, size in enumerate(SIZES):
        with ShardWriter(uri, number) as writer:
            for begin in range(0, size, 300):
                rows = rows_of(first + begin, min(300, size - begin))
                writer.add(rows, tokens=[tokens_of(int(row_id)) for row_id in rows.row_ids], said=None)
        assert writer.num_rows == size
        first += size
    return Shards(uri, SIZES, CLASSES)


def test_every_row_is_in_one_chunk(shards: Shards) -> None:
    found = shards.read(shards.chunks())
    assert len(shards) == len(found) == sum(SIZES)
    assert [int(row_id) for row_id in found.row_ids] == list(range(sum(SIZES)))
    assert found.tokens(range(len(found))) == [tokens_of(place) for place in range(sum(SIZES))]
    assert found.labels is not None
    assert [CLASSES[label] for label in found.labels] == [CLASSES[place % 3] for place in range(sum(SIZES))]
    assert found.said is None
    assert found.lengths.tolist() == [len(tokens_of(place)) for place in range(sum(SIZES))]


def test_chunks_come_in_the_order_asked(shards: Shards) -> None:
    chunks = shards.chunks()
    order = np.array([4, 0, 3, 1])
    found = shards.read(chunks[order])
    whole = [shards.read(chunks[[place]]) for place in order]
    assert found.row_ids == tuple(row_id for part in whole for row_id in part.row_ids)


def test_what_the_assistant_said_is_kept(tmp_path: Path) -> None:
    said = [np.array([False, True, True]), np.array([True])]
    with ShardWriter(tmp_path.as_uri(), 0) as writer:
        rows = Rows(("0", "1"), ("q", "q"), ("a", "a"))
        writer.add(rows, tokens=[[1, 2, 3], [4]], said=said)
    found = Shards(tmp_path.as_uri(), (2,), ()).read(np.array([[0, 0, 2]]))
    assert found.labels is None
    assert [row.said.tolist() for row in found.conversations([1, 0])] == [[True], [False, True, True]]


def test_a_shard_whose_writing_failed_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shorter"), ShardWriter(tmp_path.as_uri(), 0) as writer:
        writer.add(rows_of(0, 600), tokens=[[1]] * 300, said=None)
    assert list(tmp_path.iterdir()) == []


def test_a_shard_that_is_not_whole_is_named_with_what_to_do(tmp_path: Path) -> None:
    with ShardWriter(tmp_path.as_uri(), 0) as writer:
        writer.add(rows_of(0, 600), tokens=[[1]] * 600, said=None)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-100])
    shards = Shards(tmp_path.as_uri(), (600,), CLASSES)
    with pytest.raises(StorageError, match=rf"{path.as_uri()} is not whole .*; delete {tmp_path.as_uri()}"):
        shards.read(shards.chunks())


def test_a_label_that_is_no_class_is_refused(shards: Shards) -> None:
    other = Shards(shards.uri, shards.sizes, ("a", "b"))
    with pytest.raises(DataError, match="none of the 2 classes"):
        other.read(other.chunks()[:1])


@given(num_chunks=st.integers(0, 300), rows=st.integers(1, 5000), seed=st.integers(0, 5), epoch=st.integers(0, 5))
def test_an_epochs_windows_hold_every_chunk_once(num_chunks: int, rows: int, seed: int, epoch: int) -> None:
    windows = list(window_chunks(num_chunks, rows=rows, seed=seed, epoch=epoch))
    assert sorted(chunk for window in windows for chunk in window) == list(range(num_chunks))
    assert all(len(window) * CHUNK_ROWS >= rows for window in windows[:-1])


def test_another_epoch_has_other_windows() -> None:
    one, other = (next(window_chunks(100, rows=5000, seed=0, epoch=epoch)) for epoch in (0, 1))
    assert set(one) != set(other)
