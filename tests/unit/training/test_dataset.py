"""Streamed rows: a window at a time, every row once an epoch, and from any step on the same as without a break."""

from dataclasses import replace

import numpy as np
import pytest

from tailorbird.config.training import TrainingConfig
from tailorbird.data.sharding.shards import Shards, ShardWriter
from tailorbird.data.tokenized import TokenizedRows, TokenLists
from tests.unit.training.small import reports_of, rows_of, section_of, small_material
from training.dataset import InMemoryDataset, ShardedDataset, TrainingDataset, num_steps, steps

SIZES = (700, 900, 1100)
SECTION = section_of(batch_size=8)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    uri, first = tmp_path_factory.mktemp("shards").as_uri(), 0
    for number, size in enumerate(SIZES):
        with ShardWriter(uri, number) as writer:
            rows, tokens = rows_of(size, first=first)
            writer.add(rows.row_ids, TokenLists(tokens, labels=rows.labels))
        first += size
    return ShardedDataset(Shards(uri, SIZES, ("0", "1", "2"), window_rows=512))


def shown(rows: TrainingDataset, *, epoch: int, start: int = 0) -> list[list[str]]:
    """The ids of the rows of each step."""
    return [[window.row_ids[row] for row in batch] for window, batch in steps(rows, SECTION, epoch=epoch, start=start)]


def test_every_row_is_shown_once_an_epoch_in_another_order_each(streamed: ShardedDataset) -> None:
    orders = []
    for epoch in (0, 1):
        found = shown(streamed, epoch=epoch)
        assert len(found) == num_steps(streamed, SECTION, epoch=epoch)
        orders.append([row_id for batch in found for row_id in batch])
        assert sorted(orders[-1], key=int) == [str(place) for place in range(sum(SIZES))]
    assert orders[0] != orders[1]
    assert orders[0] == [row_id for batch in shown(streamed, epoch=0) for row_id in batch]


def test_rows_of_a_step_come_from_far_apart(streamed: ShardedDataset) -> None:
    batches = [[int(row_id) for row_id in batch] for batch in shown(streamed, epoch=0)]
    assert np.mean([np.std(batch) for batch in batches]) > sum(SIZES) / 10


@pytest.mark.parametrize("start", [0, 1, 63, 64, 65, 200, 10_000])
def test_from_any_step_on_the_rest_is_the_same(streamed: ShardedDataset, start: int) -> None:
    assert shown(streamed, epoch=1, start=start) == shown(streamed, epoch=1)[start:]


def test_only_the_windows_from_a_step_on_are_read(streamed: ShardedDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    window = ShardedDataset.window

    def counted(self: ShardedDataset, config: TrainingConfig, *, epoch: int, number: int) -> TokenizedRows:
        read.append(number)
        return window(self, config, epoch=epoch, number=number)

    monkeypatch.setattr(ShardedDataset, "window", counted)
    sizes = streamed.sizes(SECTION, epoch=0)
    assert len(sizes) == 6
    shown(streamed, epoch=0, start=sum(sizes[:4]) // 8 + 8)
    assert read == [4, 5]


def test_a_model_learns_as_much_from_streamed_rows_as_from_the_same_held_in_memory(streamed: ShardedDataset) -> None:
    material = small_material(dropout=0.0)
    held = InMemoryDataset(streamed.shards.read(streamed.shards.chunks()))
    one, other = (
        reports_of(replace(material, train=rows), epochs=1, batch_size=32, learning_rate=1e-3)[0].loss
        for rows in (streamed, held)
    )
    assert one == pytest.approx(other, rel=0.02)  # the same rows in another order
