"""Versions of a tiny random BERT."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

from serving.engines.classify import Prediction, predict_texts
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.loading import LoadedClassifier, load_bag_of_words, load_weights
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import load_encoder
from tailorbird.registry.kinds import KINDS as SPECS
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.versions import ModelVersion
from tests.build import version
from tests.unit.data.test_tokenize import BERT, WORDS, wordpiece
from tests.unit.models.test_bag_of_words import bag_of, write_bag

TEXTS = ["acute pain", "chest pains", "fever", "", "pain pain pain acute fever", "fever chest"]
KINDS: dict[str, Kind] = {"a": "probe", "b": "lora", "c": "lora", "d": "probe_bag", "e": "lora_bag"}
POOLINGS = {
    "a": Pooling(mode="cls", normalize=True, prompt="chest "),
    "c": Pooling(mode="lasttoken"),
    "d": Pooling(mode="weightedmean", prompt="acute ", num_skipped=2),
}
BATCH = 4
Loaded = LoadedClassifier[ModelVersion]


def tiny_bert(folder: Path) -> Path:
    """Save a tiny random BERT and its tokenizer to a folder, and return it."""
    wordpiece(folder, **BERT)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def versions(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    """Return probes and adapters, each without and with a bag of words, with different classes and
    lengths."""
    return {name: make_version(base, tmp_path_factory.mktemp(name), name=name) for name in KINDS}


def make_version(base: Path, folder: Path, *, name: str) -> ModelVersion:
    kind = KINDS[name]
    generator = torch.Generator().manual_seed(ord(name))
    classes = ("x", "y", name)
    if SPECS[kind].base == "adapter":
        adapted: Any = add_adapter(load_encoder(base), r=4, alpha=8, dropout=0.0)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        adapted.save_pretrained(folder / "adapter")
    if SPECS[kind].has_bag:
        write_bag(folder, bag_of(tuple(TEXTS), num_classes=len(classes)))
    save_file(torch.nn.Linear(16, len(classes)).state_dict(), folder / "head.safetensors")
    return version(
        f"{kind}-{name}",
        kind=kind,
        classes=classes,
        base_model=base.as_uri(),
        max_length=4 if name == "b" else 16,
        temperature=1.5,
        pooling=POOLINGS.get(name, MEAN),
        uri=folder.as_uri(),
        digest=name * 8,
    )


def separate(version: ModelVersion, base: Path) -> Loaded:
    """Return a version with its own weights, into which the adapter is merged."""
    folder = Path(version.uri.removeprefix("file://"))
    encoder = load_encoder(base)
    return LoadedClassifier(
        model=load_weights(
            folder, encoder=encoder, kind=version.kind, pooling=version.pooling
        ).eval(),
        tokenizer=load_tokenizer(base),
        classes=version.classes,
        max_length=version.max_length,
        version=version,
        bag=load_bag_of_words(folder, kind=version.kind),
    )


def alone(version: ModelVersion, base: Path) -> list[Prediction]:
    return predict_texts(separate(version, base), TEXTS, batch_size=BATCH)


def assert_same(predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    labels = [prediction.label for prediction in predictions]
    assert labels == [prediction.label for prediction in expected]
    scores = [prediction.scores for prediction in predictions]
    wanted = [prediction.scores for prediction in expected]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
