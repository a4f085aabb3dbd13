"""Chunks of shards are read back, and the windows of an epoch contain every chunk once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailorbird.data.rows import Rows
from tailorbird.data.sharding.shards import CHUNK_ROWS, Shards, window_chunks, write_shard_file
from tailorbird.data.tokenized import TokenLists
from tests import build

SIZES = (700, 0, 256, 3)
CLASSES = ("a", "b", "c")


def rows_of(first: int, num: int) -> Rows:
    positions = range(first, first + num)
    labels = [CLASSES[position % 3] for position in positions]
    return build.rows(list(map(str, positions)), labels, first=first)


def tokens_of(position: int) -> list[int]:
    return [101, *range(position % 7), 102]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    uri = tmp_path_factory.mktemp("shards").as_uri()
    first = 0
    for number, size in enumerate(SIZES):
        with write_shard_file(uri, number) as writer:
            for begin in range(0, size, 300):
                rows = rows_of(first + begin, min(300, size - begin))
                tokens = [tokens_of(int(row_id)) for row_id in rows.row_ids]
                writer.add(rows.row_ids, TokenLists(tokens, labels=rows.labels))
        assert writer.num_rows == size
        first += size
    return Shards(uri, SIZES, CLASSES)


def test_every_row_is_in_one_chunk(shards: Shards) -> None:
    rows = shards.read(shards.chunks())
    assert len(shards) == len(rows) == sum(SIZES)
    assert [int(row_id) for row_id in rows.row_ids] == list(range(sum(SIZES)))
    assert rows.tokens(range(len(rows))) == [tokens_of(position) for position in range(sum(SIZES))]
    assert rows.labels is not None
    assert [CLASSES[label] for label in rows.labels] == [
        CLASSES[position % 3] for position in range(sum(SIZES))
    ]
    assert rows.assistant_mask is None
    some = shards.read(shards.chunks()[[1, 3]])
    assert some.row_ids == (*map(str, range(256, 512)), *map(str, range(700, 956)))
    assert rows.lengths.tolist() == [len(tokens_of(position)) for position in range(sum(SIZES))]


def test_a_shard_whose_writing_failed_is_not_uploaded(tmp_path: Path) -> None:
    rows = rows_of(0, 600)
    with (
        pytest.raises(ValueError, match="shorter"),
        write_shard_file(tmp_path.as_uri(), 0) as writer,
    ):
        writer.add(rows.row_ids, TokenLists([[1]] * 300, labels=rows.labels))
    assert list(tmp_path.iterdir()) == []


@given(
    num_chunks=st.integers(0, 300),
    rows=st.integers(1, 5000),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 5),
)
def test_the_windows_of_an_epoch_contain_every_chunk_once(
    num_chunks: int, rows: int, seed: int, epoch: int
) -> None:
    windows = list(window_chunks(num_chunks, rows=rows, seed=seed, epoch=epoch))
    assert sorted(chunk for window in windows for chunk in window) == list(range(num_chunks))
    assert all((np.diff(window) > 0).all() for window in windows)
    assert all(len(window) * CHUNK_ROWS >= rows for window in windows[:-1])
    if num_chunks > 100 and len(windows) > 2:
        other = next(window_chunks(num_chunks, rows=rows, seed=seed, epoch=epoch + 1))
        assert set(other) != set(windows[0])
