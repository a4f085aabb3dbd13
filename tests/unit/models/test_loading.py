"""Loading of a version rejects pickles, foreign code and weights that do not fit."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import BertModel

from tailorbird.models.errors import ModelError
from tailorbird.models.loading import load_weights
from tailorbird.models.lora import add_adapter
from tailorbird.models.pretrained import load_encoder, without_pooler
from tests.payload import Payload
from tests.unit.models.tiny_bert import tiny_bert


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A folder with a tiny random BERT."""
    tiny_bert().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def save_version(base: Path, folder: Path) -> Path:
    """Write a version with a head and an adapter for the model at `base`, and return the file of
    adapter weights."""
    folder.mkdir()
    save_file(torch.nn.Linear(16, 3).state_dict(), folder / "head.safetensors")
    adapted = add_adapter(load_encoder(base), r=4, alpha=8, dropout=0.0)
    adapted.save_pretrained(folder / "adapter")  # type: ignore[operator]
    return folder / "adapter" / "adapter_model.safetensors"


@pytest.mark.parametrize("num_weights", [0, 5])
def test_peft_2892_an_adapter_with_missing_weights_is_rejected(
    base: Path, tmp_path: Path, num_weights: int
) -> None:
    file = save_version(base, tmp_path / "lora")
    save_file(dict(sorted(load_file(file).items())[:num_weights]), file)
    with pytest.raises(ModelError):
        load_weights(tmp_path / "lora", encoder=load_encoder(base), kind="lora")
    other = without_pooler(tiny_bert(width=32))
    with pytest.raises(ModelError):
        load_weights(tmp_path / "lora", encoder=other, kind="lora")


def test_the_encoder_is_loaded_without_its_pooler_in_the_requested_dtype(base: Path) -> None:
    encoder = load_encoder(base, dtype=torch.bfloat16)
    assert encoder.pooler is None
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    for dropout, expected in ((None, 0.1), (0.0, 0.0)):
        loaded: Any = load_encoder(base, attention_dropout=dropout)
        assert loaded.encoder.layer[0].attention.self.dropout.p == expected
    (base / "config.json").write_text('{"model_type": "fnet"}')  # it has no attention dropout
    with pytest.raises(ModelError):
        load_encoder(base, attention_dropout=0.0)


@pytest.mark.parametrize(
    "file", ["pytorch_model.bin", "model.pt", "pytorch_model-00001-of-00001.bin"]
)
def test_pickles_of_a_base_model_are_never_read(base: Path, tmp_path: Path, file: str) -> None:
    torch.save({"weight": Payload(tmp_path / "it-ran")}, base / file)
    load_encoder(base)
    (base / "model.safetensors").unlink()
    with pytest.raises(ModelError):
        load_encoder(base)
    index = {"metadata": {}, "weight_map": {"embeddings.word_embeddings.weight": file}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError):
        load_encoder(base)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize("name", ["head.safetensors", "adapter/adapter_model.safetensors"])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_a_version_with_pickles_is_rejected(
    base: Path, tmp_path: Path, name: str, suffix: str
) -> None:
    save_version(base, tmp_path / "lora")
    file = tmp_path / "lora" / name
    file.unlink()
    torch.save({"weight": Payload(tmp_path / "it-ran")}, file.with_suffix(suffix))
    with pytest.raises((ModelError, SafetensorError)):
        load_weights(tmp_path / "lora", encoder=load_encoder(base), kind="lora")
    assert not (tmp_path / "it-ran").exists()


def change_config(base: Path, **fields: Any) -> None:
    file = base / "config.json"
    file.write_text(json.dumps(json.loads(file.read_bytes()) | fields))


@pytest.mark.parametrize("model_type", ["bert", "unknown"])
def test_code_of_a_base_model_is_not_run(base: Path, tmp_path: Path, model_type: str) -> None:
    code = f"import os\nos.mkdir({str(tmp_path / 'it-ran')!r})\nclass Theirs: ...\n"
    (base / "theirs.py").write_text(code)
    theirs = dict.fromkeys(("AutoConfig", "AutoModel"), "theirs.Theirs")
    change_config(base, model_type=model_type, auto_map=theirs)
    if model_type == "bert":
        assert type(load_encoder(base)) is BertModel  # the class of transformers
    else:
        with pytest.raises(ModelError):
            load_encoder(base)
    assert not (tmp_path / "it-ran").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {"attn_implementation": "owner/kernel"},
        {"text_config": {"_attn_implementation": {"": "owner/kernel:function"}}},
    ],
)
def test_a_config_that_refers_to_code_on_the_hub_is_rejected(
    base: Path, fields: dict[str, Any]
) -> None:
    change_config(base, **fields)
    with pytest.raises(ModelError):
        load_encoder(base)
