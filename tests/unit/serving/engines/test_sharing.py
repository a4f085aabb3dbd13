"""Versions on a shared base model give the same predictions as separate models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from serving.engines.classify import Prediction, predict_shared, predict_texts
from serving.engines.text_rows import TextRow, tokenize
from tailorbird.data.tokenize import load_tokenizer
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import LoadedClassifier, load_bag_of_words, load_weights
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import load_encoder
from tailorbird.models.shared_encoder import SharedEncoder
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


@pytest.fixture
def encoder(base: Path) -> SharedEncoder:
    return SharedEncoder(base.as_uri(), dtype="float32")


@pytest.fixture
def shared(encoder: SharedEncoder, versions: dict[str, ModelVersion]) -> dict[str, Loaded]:
    """Return all versions on the encoder."""
    return {name: add(encoder, version) for name, version in versions.items()}


def add(encoder: SharedEncoder, version: ModelVersion) -> Loaded:
    folder = Path(version.uri.removeprefix("file://"))
    return encoder.add(version, folder=folder, bag=load_bag_of_words(folder, kind=version.kind))


def predict(encoder: SharedEncoder, *loaded: Loaded) -> list[Prediction]:
    """Return the predictions of each text by each version, in one pass."""
    rows = [TextRow(each, text) for text in TEXTS for each in loaded]
    tokenize(rows)
    tokens = [row.tokens or [] for row in rows]
    pairs = [(row.loaded, row.text) for row in rows]
    return predict_shared(encoder, pairs, batch_size=BATCH, tokens=tokens)


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


def test_versions_with_one_copy_of_the_weights_predict_as_with_their_own_alone_and_in_one_batch(
    encoder: SharedEncoder,
    shared: dict[str, Loaded],
    versions: dict[str, ModelVersion],
    base: Path,
) -> None:
    mixed = predict(encoder, *shared.values())
    for index, (name, loaded) in enumerate(shared.items()):
        expected = alone(versions[name], base)
        assert_same(mixed[index :: len(shared)], expected)
        assert_same(predict(encoder, loaded), expected)
        assert loaded.model is not None
        names = {name for name, _ in loaded.model.named_parameters()}
        assert names == {"head.weight", "head.bias"}


def test_removing_a_version_removes_its_adapter_and_keeps_the_others(
    encoder: SharedEncoder,
    shared: dict[str, Loaded],
    versions: dict[str, ModelVersion],
    base: Path,
) -> None:
    again = add(encoder, versions["b"])  # before its removal
    assert_same(predict(encoder, shared["b"], again)[::2], alone(versions["b"], base))
    for removed, left in (("b", again), ("c", again), ("e", shared["d"])):
        encoder.remove(shared[removed])
        with pytest.raises(KeyError, match=versions[removed].digest):
            predict(encoder, shared[removed])
        for loaded in (shared["a"], left):
            assert_same(predict(encoder, loaded), alone(loaded.version, base))
    encoder.remove(again)
    assert not any(isinstance(module, LoraLayer) for module in encoder._encoder.modules())
    assert_same(predict(encoder, add(encoder, versions["b"])), alone(versions["b"], base))


@pytest.mark.parametrize("before", ["a", "ac"])
def test_an_adapter_that_is_incomplete_or_does_not_fit_changes_no_prediction_of_others(
    encoder: SharedEncoder,
    versions: dict[str, ModelVersion],
    base: Path,
    tmp_path: Path,
    before: str,
) -> None:
    loaded = [add(encoder, versions[name]) for name in before]
    broken = make_version(base, tmp_path, name="b").model_copy(update={"digest": "broken"})
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    names = sorted(weights)
    incomplete = {name: weights[name] for name in names[:5]}
    for content in (incomplete, weights | {names[-1]: torch.ones(3, 4)}):
        save_file(content, file)
        with pytest.raises(ModelError):
            add(encoder, broken)
        for each in loaded:
            assert_same(predict(encoder, each), alone(each.version, base))
