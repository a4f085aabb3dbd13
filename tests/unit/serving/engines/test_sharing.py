"""Versions on a shared base model give the same predictions as separate models."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from serving.engines.classify import Prediction, predict_shared, predict_texts
from serving.engines.text_rows import TextRow, tokenize
from tailorbird.models.errors import ModelError
from tailorbird.models.loading import LoadedClassifier, load_bag_of_words, load_weights
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import load_encoder
from tailorbird.models.shared_encoder import SharedEncoder
from tailorbird.registry.kinds import KINDS as SPECS
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.versions import ModelVersion
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


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a tiny random BERT and its tokenizer."""
    folder = wordpiece(tmp_path_factory.mktemp("base"), **BERT)
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
def versions(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelVersion]:
    """Return probes and adapters, each without and with a bag of words, with different classes and
    lengths."""
    return {name: make_version(base, tmp_path_factory.mktemp(name), name=name) for name in KINDS}


def make_version(base: Path, folder: Path, *, name: str) -> ModelVersion:
    generator = torch.Generator().manual_seed(ord(name))
    classes = ("x", "y", name)
    head = torch.nn.Linear(16, len(classes))
    if SPECS[KINDS[name]].base == "adapter":
        adapted = add_adapter(load_encoder(base), r=4, alpha=8, dropout=0.0)
        with torch.no_grad():
            for parameter in adapted.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
        adapted.save_pretrained(folder / "adapter")  # type: ignore[operator]
    if SPECS[KINDS[name]].has_bag:
        write_bag(folder, bag_of(tuple(TEXTS), num_classes=len(classes)))
    save_file(head.state_dict(), folder / "head.safetensors")
    return ModelVersion(
        kind=KINDS[name],
        classes=classes,
        base_model=base.as_uri(),
        max_length=4 if name == "b" else 16,
        dtype="float32",
        code="s3://none.zip",
        recipe_hash="0" * 64,
        created_at="2026-01-01T00:00:00+00:00",
        temperature=1.5,
        pooling=POOLINGS.get(name, MEAN),
        name="task",
        version=f"{KINDS[name]}-{name}",
        uri=folder.as_uri(),
        digest=name * 8,
    )


@dataclass
class Shared:
    encoder: SharedEncoder
    loaded: dict[str, LoadedClassifier[ModelVersion]]


@pytest.fixture
def shared(base: Path, versions: dict[str, ModelVersion]) -> Shared:
    encoder = SharedEncoder(base.as_uri(), dtype="float32")
    return Shared(encoder, {name: add(encoder, version) for name, version in versions.items()})


def add(encoder: SharedEncoder, version: ModelVersion) -> LoadedClassifier[ModelVersion]:
    folder = Path(version.uri.removeprefix("file://"))
    return encoder.add(version, folder=folder, bag=load_bag_of_words(folder, kind=version.kind))


def predict(
    encoder: SharedEncoder, rows: Sequence[tuple[LoadedClassifier[ModelVersion], str]]
) -> list[Prediction]:
    text_rows = [TextRow(loaded, text) for loaded, text in rows]
    tokenize(text_rows)
    tokens = [row.tokens or [] for row in text_rows]
    return predict_shared(encoder, rows, batch_size=BATCH, tokens=tokens)


def alone(version: ModelVersion, base: Path) -> list[Prediction]:
    """Return the version's predictions with its own weights, into which the adapter is merged."""
    folder = Path(version.uri.removeprefix("file://"))
    encoder = load_encoder(base)
    model = load_weights(folder, encoder=encoder, kind=version.kind, pooling=version.pooling).eval()
    tokenizer = SharedEncoder(base.as_uri(), dtype="float32").tokenizer
    bag = load_bag_of_words(folder, kind=version.kind)
    loaded = LoadedClassifier(model, tokenizer, version.classes, version.max_length, version, bag)
    return predict_texts(loaded, TEXTS, batch_size=BATCH)


def assert_same(predictions: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    assert [prediction.label for prediction in predictions] == [
        prediction.label for prediction in expected
    ]
    np.testing.assert_allclose(
        [p.scores for p in predictions], [p.scores for p in expected], atol=1e-5
    )


@pytest.mark.parametrize("name", list(KINDS))
def test_each_version_predicts_as_with_its_own_weights(
    shared: Shared, versions: dict[str, ModelVersion], base: Path, name: str
) -> None:
    rows = [(shared.loaded[name], text) for text in TEXTS]
    assert_same(predict(shared.encoder, rows), alone(versions[name], base))


def test_rows_of_a_mixed_batch_get_the_predictions_of_their_versions(
    shared: Shared, versions: dict[str, ModelVersion], base: Path
) -> None:
    rows = [(shared.loaded[name], text) for text in TEXTS for name in KINDS]
    predictions = predict(shared.encoder, rows)
    for index, name in enumerate(KINDS):
        assert_same(predictions[index :: len(KINDS)], alone(versions[name], base))


def test_the_base_weights_are_loaded_once(shared: Shared) -> None:
    models = [loaded.model for loaded in shared.loaded.values() if loaded.model is not None]
    assert len(models) == len(KINDS)
    assert all(
        {name for name, _ in model.named_parameters()} == {"head.weight", "head.bias"}
        for model in models
    )


def test_removing_a_version_removes_its_adapter_and_keeps_the_others(
    shared: Shared, versions: dict[str, ModelVersion], base: Path
) -> None:
    for removed, others in (("b", ("a", "c", "e")), ("c", ("a", "e")), ("e", ("a", "d"))):
        shared.encoder.remove(shared.loaded[removed])
        with pytest.raises(KeyError, match=f"adapter {versions[removed].digest}-. is not loaded"):
            predict(shared.encoder, [(shared.loaded[removed], TEXTS[0])])
        for name in others:
            rows = [(shared.loaded[name], text) for text in TEXTS]
            assert_same(predict(shared.encoder, rows), alone(versions[name], base))
    assert not any(isinstance(module, LoraLayer) for module in shared.encoder._encoder.modules())
    again = add(shared.encoder, versions["b"])
    assert_same(
        predict(shared.encoder, [(again, text) for text in TEXTS]), alone(versions["b"], base)
    )


def test_an_incomplete_adapter_is_refused_and_leaves_nothing(
    shared: Shared, versions: dict[str, ModelVersion], base: Path, tmp_path: Path
) -> None:
    broken = make_version(base, tmp_path, name="b").model_copy(update={"digest": "broken"})
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file(dict(sorted(load_file(file).items())[:5]), file)
    with pytest.raises(ModelError):
        add(shared.encoder, broken)
    rows = [(shared.loaded["c"], text) for text in TEXTS]
    assert_same(predict(shared.encoder, rows), alone(versions["c"], base))


@pytest.mark.parametrize("before", ["a", "ac"])
def test_an_adapter_that_does_not_fit_changes_no_prediction_of_others(
    versions: dict[str, ModelVersion], base: Path, tmp_path: Path, before: str
) -> None:
    encoder = SharedEncoder(base.as_uri(), dtype="float32")
    loaded = {name: add(encoder, versions[name]) for name in before}
    broken = make_version(base, tmp_path, name="b")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    weights = load_file(file)
    last = sorted(weights)[-1]
    save_file(weights | {last: torch.ones(3, 4)}, file)
    with pytest.raises(ModelError):
        add(encoder, broken)
    for name, model in loaded.items():
        rows = [(model, text) for text in TEXTS]
        assert_same(predict(encoder, rows), alone(versions[name], base))


def test_a_version_that_is_added_again_before_its_removal_still_predicts(
    shared: Shared, versions: dict[str, ModelVersion], base: Path
) -> None:
    again = add(shared.encoder, versions["b"])
    both = [(loaded, text) for text in TEXTS for loaded in (shared.loaded["b"], again)]
    predictions = predict(shared.encoder, both)
    assert_same(predictions[::2], alone(versions["b"], base))
    shared.encoder.remove(shared.loaded["b"])
    rows = [(again, text) for text in TEXTS]
    assert_same(predict(shared.encoder, rows), alone(versions["b"], base))


def test_full_fine_tunes_hybrids_and_chat_models_do_not_share(
    versions: dict[str, ModelVersion],
) -> None:
    assert versions["a"].shares_base
    assert not versions["a"].model_copy(update={"kind": "full"}).shares_base
    assert not versions["e"].model_copy(update={"kind": "full_bag"}).shares_base
    assert not versions["a"].model_copy(update={"kind": "hybrid"}).shares_base
