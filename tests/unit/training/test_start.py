"""What a training starts from: a head towards the classes' centroids, word embeddings that stay."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from data.shards import Shards, ShardWriter
from models.classifier import centroid_head, embed_rows
from tests.unit.training.small import NUM_CLASSES, rows_of, section_of, small_material
from training import classification
from training.export import export_weights
from training.loop import new_engine, train
from training.windows import StreamedRows
from training.zero import stop_engine


def test_a_head_towards_centroids_knows_what_lies_near_them_and_is_not_yet_sure() -> None:
    generator = np.random.default_rng(0)
    middles = generator.normal(size=(5, 16)) * 3 + 10
    labels = generator.integers(0, 4, size=400)  # the last class has no row
    embeddings = (middles[labels] + generator.normal(size=(400, 16))).astype(np.float32)
    head = centroid_head(embeddings, labels, num_classes=5)
    logits = head(torch.from_numpy(embeddings)).detach().numpy()
    assert (logits[:, :4].argmax(1) == labels).mean() > 0.99
    assert not logits[:, 4].any()
    assert logits.std() == pytest.approx(1, abs=1e-3)
    assert np.abs(logits.mean(0)).max() < 1e-4


def test_a_head_of_one_class_alone_starts_from_zeros_that_are_numbers() -> None:
    head = centroid_head(np.ones((3, 4), dtype=np.float32), np.zeros(3, dtype=np.int64), num_classes=2)
    assert torch.isfinite(head.weight).all()


def test_the_head_starts_from_a_few_rows_of_each_class(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classification, "CENTROID_ROWS", 2)
    asked: list[Any] = []

    def heard(model: Any, tokens: Any, **options: Any) -> Any:
        asked.append(tokens)
        return embed_rows(model, tokens, **options)

    monkeypatch.setattr("training.classification.embed_rows", heard)
    material = small_material(dropout=0.1)
    first, second = (material.build(section_of(head_start="centroids")) for _ in range(2))
    assert [len(tokens) for tokens in asked] == [2 * NUM_CLASSES]  # once for all trials of this worker
    assert first.head.weight.abs().sum() > 0
    assert torch.equal(first.head.weight, second.head.weight)
    assert first.head.weight is not second.head.weight
    assert not material.build(section_of()).head.weight.any()
    window = material.train.some()
    assert window.labels is not None
    places = [np.flatnonzero(window.labels == number)[:2] for number in range(NUM_CLASSES)]
    assert asked[0] == window.tokens(np.concatenate(places))


def test_a_head_starts_from_every_class_of_streamed_rows_that_lie_in_the_order_of_their_labels(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classification, "CENTROIDS_AMONG", 1024)
    material, sizes = small_material(dropout=0.0), (3000, 3000)
    rows, tokens = rows_of(sum(sizes), first=0)
    order = np.argsort(np.array(rows.labels), kind="stable")
    for number, part in enumerate(np.split(order, 2)):
        with ShardWriter(tmp_path.as_uri(), number) as writer:
            writer.add(rows.take(part), tokens=[tokens[row] for row in part], said=None)
    streamed = StreamedRows(Shards(tmp_path.as_uri(), sizes, ("0", "1", "2"), ()))
    assert len(streamed.some()) <= 256 < len(streamed.some(rows=1024)) <= 1024
    head = replace(material, train=streamed).build(section_of(head_start="centroids")).head
    assert (head.weight.abs().sum(1) > 0).all()


@pytest.mark.parametrize("fields", [{}, {"gradient_checkpointing": True}, {"zero_stage": 3}], ids=str)
def test_word_embeddings_stay_while_all_else_learns(tmp_path: Any, fields: dict[str, Any]) -> None:
    material = small_material(dropout=0.0)
    section = section_of(freeze_embeddings=True, head_start="centroids", **fields)
    engine = new_engine(section, material)
    train(engine, section, material=material, on_step=lambda _: None, on_epoch=lambda *_: True)
    export_weights(engine, section, material=material, folder=tmp_path)
    stop_engine(engine)
    before, after = material.encoder.state_dict(), material.load(tmp_path, section=section).encoder.state_dict()
    assert before.keys() == after.keys()
    same = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert {name for name in same if before[name].is_floating_point()} == {"embeddings.word_embeddings.weight"}
