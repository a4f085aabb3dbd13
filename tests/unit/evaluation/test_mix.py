"""Tests of a fine-tuned classifier that is mixed with a bag of words by a weight from
validation."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import save_file

from serving.engines.classify import predict_texts
from tailorbird.data.rows import Rows
from tailorbird.evaluation.baselines.linear_head import HeldOut
from tailorbird.evaluation.inference.predict import predict_rows
from tailorbird.evaluation.mix import mix_with_bag, write_mix
from tailorbird.evaluation.mix_weight import select_weight
from tailorbird.models.loading import LoadedClassifier, load_artifact
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import load_encoder
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import MEAN, Pooling
from tailorbird.registry.versions import VersionConfig, read_artifact_config, register, write_config
from tests import build
from tests.build import version_config
from tests.loaded import load_model
from tests.unit.data.test_tokenize import BERT, WORDS, wordpiece
from tests.unit.models.test_bag_of_words import bag_of, write_bag
from tests.unit.models.tiny_bert import tiny_bert

TEXTS = (
    "acute pain",
    "chest pains",
    "fever",
    "",
    "pain pain pain acute fever",
    "fever chest",
    "?!",
)
CLASSES = ("x", "y", "z")
ROWS = build.rows(TEXTS, ("x", "y", "z", "x", "y", "z", "x"))
METHODS: tuple[Kind, ...] = ("full", "lora")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random BERT and its tokenizer."""
    folder = wordpiece(tmp_path_factory.mktemp("base"), **BERT)
    tiny_bert(vocabulary=len(WORDS)).save_pretrained(folder)
    return folder


def artifact(
    folder: Path,
    *,
    kind: Kind,
    base: Path,
    classes: tuple[str, ...] = CLASSES,
    pooling: Pooling = MEAN,
) -> str:
    """Write a fine-tuned classifier or a bag of words with a temperature, and return its URI."""
    folder.mkdir()
    torch.manual_seed(1)
    if kind == "bag_of_words":
        write_bag(folder, bag_of(TEXTS[:3], num_classes=len(classes)))
    else:
        encoder = load_encoder(base)
        if kind == "lora":
            encoder = add_adapter(encoder, r=4, alpha=8, dropout=0.0)
        with torch.no_grad():
            for parameter in encoder.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        if isinstance(encoder, PeftModel):
            encoder.save_pretrained(folder / "adapter")
        else:
            save_file(encoder.state_dict(), folder / "encoder.safetensors")
        save_file(torch.nn.Linear(16, len(classes)).state_dict(), folder / "head.safetensors")
    config = version_config(
        kind=kind,
        classes=classes,
        base_model=base.as_uri(),
        max_length=16,
        temperature=0.5 if kind == "bag_of_words" else 1.5,
        pooling=pooling,
    )
    write_config(folder, config)
    return folder.as_uri()


@pytest.fixture
def bag_uri(base: Path, tmp_path: Path) -> str:
    return artifact(tmp_path / "bag", kind="bag_of_words", base=base)


@pytest.fixture(params=METHODS)
def model_uri(request: pytest.FixtureRequest, base: Path, tmp_path: Path) -> str:
    return artifact(tmp_path / "model", kind=request.param, base=base)


def load(uri: str) -> LoadedClassifier[VersionConfig]:
    loaded = load_artifact(uri)
    assert isinstance(loaded, LoadedClassifier)
    return loaded


def test_the_weight_with_the_highest_score_is_selected() -> None:
    truth = np.array([0, 0, 1, 1])
    # The model is wrong in the second row, the bag of words in the first and third row.
    model = np.array([[2.0, 0.0], [0.0, 1.0], [0.0, 2.0], [0.0, 2.0]], np.float32)
    bag = np.array([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0], [0.0, 1.0]], np.float32)
    record = select_weight(model, bag, held_out=HeldOut(truth, "accuracy"))
    assert (record.weight, record.validation, record.unmixed) == (0.6, 1.0, 0.75)


def test_a_mix_adds_the_logits_of_both_models_times_their_factors(
    model_uri: str, bag_uri: str, tmp_path: Path
) -> None:
    write_mix(model_uri, bag_uri=bag_uri, factors=(0.2, 1.4), to=(tmp_path / "mix").as_uri())
    mixed, model, bag = (load(uri) for uri in ((tmp_path / "mix").as_uri(), model_uri, bag_uri))
    expected = 0.2 * model.logits(ROWS.texts) + 1.4 * bag.logits(ROWS.texts)
    np.testing.assert_allclose(mixed.logits(ROWS.texts), expected, rtol=1e-5, atol=1e-6)
    assert mixed.version == model.version.model_copy(
        update={"kind": f"{model.version.kind}_bag", "temperature": 1.0}
    )


def test_a_better_mix_is_written_and_a_registered_mix_serves_the_evaluated_predictions(
    model_uri: str, bag_uri: str, tmp_path: Path
) -> None:
    labels = predict_rows(bag_uri, rows=ROWS).outputs  # the bag of words is right in every row
    rows = Rows(ROWS.row_ids, TEXTS, labels)
    to = (tmp_path / "mix").as_uri()
    record = mix_with_bag(model_uri, bag_uri=bag_uri, validation=rows, metric="accuracy", to=to)
    assert record.unmixed < record.validation
    assert record.weight < 1
    evaluated = predict_rows(to, rows=rows)
    assert evaluated.scores.mean() == record.validation
    version = register((tmp_path / "registry" / "task").as_uri(), tmp_path / "mix")
    assert version.version.startswith(f"{version.kind.replace('_', '-')}-")
    assert version.kind == evaluated.model == f"{read_artifact_config(model_uri).kind}_bag"
    served = predict_texts(load_model(version.uri, LoadedClassifier), TEXTS, batch_size=len(TEXTS))
    assert tuple(prediction.label for prediction in served) == evaluated.outputs
    np.testing.assert_array_equal([prediction.score for prediction in served], evaluated.calibrated)


def test_a_mix_that_is_not_better_or_of_other_classes_is_not_written(
    model_uri: str, base: Path, bag_uri: str, tmp_path: Path
) -> None:
    rows = Rows(ROWS.row_ids, TEXTS, predict_rows(model_uri, rows=ROWS).outputs)
    to = tmp_path / "mix"
    options: Any = {"validation": rows, "metric": "accuracy", "to": to.as_uri()}
    record = mix_with_bag(model_uri, bag_uri=bag_uri, **options)
    assert (record.weight, record.validation, record.unmixed) == (1.0, 1.0, 1.0)
    for classes in (("x", "y"), ("z", "y", "x")):  # also in another order
        folder = tmp_path / str(len(classes))
        other = artifact(folder, kind="bag_of_words", base=base, classes=classes)
        with pytest.raises(ValueError, match="different classes"):
            mix_with_bag(model_uri, bag_uri=other, **options)
    assert not to.exists()
