"""A version that is exported for another engine has the predictions of torch, for any batch size
and with padding."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tailorbird.data.fingerprints import fingerprints, save_fingerprints
from tailorbird.evaluation.trained_rows import training_fingerprints
from tailorbird.models import export as export_module
from tailorbird.models.classifier import Classifier, embed_rows, logits_rows
from tailorbird.models.export import export_int8, write_graph
from tailorbird.models.loading import load_artifact
from tailorbird.models.pretrained import load_encoder
from tailorbird.models.runtimes import EngineError, load_exported
from tailorbird.registry.kinds import Kind
from tailorbird.registry.pooling import Pooling
from tailorbird.registry.versions import (
    EXPORTED_ENCODER,
    TRAINING_ROWS,
    ModelVersion,
    VersionConfig,
    register,
    write_config,
)
from tests.build import version_config
from tests.unit.data.test_tokenize import BERT, wordpiece
from tests.unit.models.test_bag_of_words import bag_of, write_bag
from tests.unit.models.tiny_bert import tiny_bert

ROWS = [[1, 2, 3], [4], [5, 6, 7, 8], list(range(1, 31)), [9, 9]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small random BERT and a tokenizer."""
    folder = wordpiece(tmp_path_factory.mktemp("base"), **BERT)
    tiny_bert(width=32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(base: Path, tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    """A registered version with full fine-tuned weights."""
    folder = tmp_path_factory.mktemp("evaluated")
    encoder = load_encoder(base)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.05)
    save_file(encoder.state_dict(), folder / "encoder.safetensors")
    save_file(torch.nn.Linear(32, 3).state_dict(), folder / "head.safetensors")
    save_fingerprints((folder / TRAINING_ROWS).as_uri(), fingerprints(["a training row"]))
    write_config(folder, config_of(base, kind="full"))
    return register((tmp_path_factory.mktemp("registry") / "toy").as_uri(), folder)


def config_of(base: Path, *, kind: Kind) -> VersionConfig:
    return version_config(
        kind=kind, classes=("a", "b", "c"), base_model=base.as_uri(), max_length=32, temperature=1.5
    )


def exported(evaluated: ModelVersion, folder: Path) -> Any:
    uri = (folder / "export").as_uri()
    export_int8(evaluated.uri, code="s3://models/toy/code/later.zip", to=uri)
    return load_artifact(uri)


def logits_of(loaded: Any) -> np.ndarray:
    return logits_rows(loaded.model, ROWS, pad_id=0, batch_size=4)


@pytest.fixture(scope="module")
def export(evaluated: ModelVersion, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an export."""
    folder = tmp_path_factory.mktemp("exports")
    exported(evaluated, folder)
    return folder / "export"


@pytest.mark.parametrize(
    "pooling",
    [
        Pooling(),
        Pooling(mode="lasttoken", normalize=True),
        Pooling(mode="weightedmean", num_skipped=1),
    ],
)
def test_an_exported_graph_has_the_pooling_of_the_version(
    base: Path, tmp_path: Path, pooling: Pooling
) -> None:
    model = Classifier(load_encoder(base), torch.nn.Linear(32, 3), pooling=pooling).eval()
    write_graph(model, tmp_path / EXPORTED_ENCODER, max_length=32)
    rows = [[1, *row] for row in ROWS]  # no row has only tokens that are skipped
    graph = load_exported(tmp_path, head=model.head)
    np.testing.assert_allclose(
        embed_rows(graph, rows, pad_id=0), embed_rows(model, rows, pad_id=0), atol=1e-5
    )


def test_a_probe_with_a_bag_of_words_is_exported_with_both(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "probe"
    write_bag(folder, bag_of(("acute pain", "fever")))
    save_file(torch.nn.Linear(32, 3).state_dict(), folder / "head.safetensors")
    write_config(folder, config_of(base, kind="probe_bag"))
    probe = register((tmp_path / "registry" / "toy").as_uri(), folder)
    texts = ("acute pain unknown", "fever")
    with_torch: Any = load_artifact(probe.uri)
    int8 = exported(probe, tmp_path)
    assert int8.bag is not None
    np.testing.assert_allclose(int8.logits(texts), with_torch.logits(texts), atol=0.05)


def test_int8_approximates_the_logits_of_torch_with_a_smaller_file(
    evaluated: ModelVersion, export: Path, tmp_path: Path
) -> None:
    with_torch: Any = load_artifact(evaluated.uri)
    int8_values, torch_values = logits_of(load_artifact(export.as_uri())), logits_of(with_torch)
    assert 0 < np.abs(int8_values - torch_values).max() < 0.1 * np.abs(torch_values).max()
    write_graph(with_torch.model, tmp_path / "whole.onnx", max_length=32)
    assert (export / EXPORTED_ENCODER).stat().st_size < (tmp_path / "whole.onnx").stat().st_size


def test_an_exported_version_records_its_original_version_and_training_rows(
    evaluated: ModelVersion, export: Path, tmp_path: Path
) -> None:
    version = register((tmp_path / "toy").as_uri(), export)
    assert version.exported_from is not None
    assert version.exported_from.digest == evaluated.digest
    assert (version.classes, version.temperature) == (evaluated.classes, 1.5)
    assert version.code == "s3://models/toy/code/later.zip"
    np.testing.assert_array_equal(training_fingerprints(version), fingerprints(["a training row"]))


def test_a_missing_engine_and_a_corrupt_file_raise_engine_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / EXPORTED_ENCODER).write_bytes(b"no graph")
    head = torch.nn.Linear(2, 2)
    with pytest.raises(EngineError):
        load_exported(tmp_path, head=head)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError):
        load_exported(tmp_path, head=head)
    monkeypatch.setitem(sys.modules, "onnxruntime.quantization", None)
    with pytest.raises(EngineError, match="pip install"):
        export_module._quantize(tmp_path / EXPORTED_ENCODER)
