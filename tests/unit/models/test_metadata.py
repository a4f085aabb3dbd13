"""Metadata of a base model, read without its weights, and whether it can be divided among ranks;
tests/unit/evaluation/inference/test_two_ranks.py divides some."""

import json
from pathlib import Path

import pytest
from torch import nn

from tailorbird.data.task_data import CLASSIFICATION, ChatData
from tailorbird.models.lora import add_adapter
from tailorbird.models.metadata import (
    MetadataError,
    read_metadata,
    require_encoder,
    shape_of,
)
from tailorbird.models.pretrained import load_encoder
from tests import small_chat
from tests.unit.models.tiny_bert import tiny_bert


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    tiny_bert().save_pretrained(tmp_path)
    small_chat.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def num_trained(model: nn.Module) -> int:
    trained = [value for value in model.parameters() if value.requires_grad]
    return sum(value.numel() for value in trained)


def test_the_sizes_of_an_encoder_equal_those_of_the_loaded_model(encoder: Path) -> None:
    metadata = read_metadata(encoder.as_uri(), task=CLASSIFICATION)
    shape = metadata.shape
    assert shape.num_parameters == num_trained(load_encoder(encoder))
    assert metadata.num_stored >= shape.num_parameters  # the file also contains the pooler
    assert (metadata.kind, metadata.is_encoder_decoder, metadata.longest) == ("bert", False, 512)
    assert (shape.hidden, shape.intermediate, shape.gated) == (16, 32, False)
    assert shape.attention_dropout == 0.1
    adapted = add_adapter(load_encoder(encoder), r=4, alpha=8, dropout=0.0)
    assert 4 * shape.num_linear_ends == num_trained(adapted)


def test_the_adapter_of_a_chat_model_excludes_the_output_layer() -> None:
    model = small_chat.language_model()
    shape = shape_of(model)
    assert shape.gated
    assert (
        shape.kv_width == model.model.layers[0].self_attn.k_proj.out_features == shape.hidden // 2
    )
    adapted = add_adapter(model, r=2, alpha=4, dropout=0.0)
    assert 2 * shape.num_linear_ends == num_trained(adapted)


def test_an_unusable_chat_template_is_reported(tmp_path: Path) -> None:
    small_chat.save(tmp_path)
    metadata = read_metadata(tmp_path.as_uri(), task=ChatData())
    assert (metadata.is_causal, metadata.template_error, metadata.longest) == (True, None, 256)
    assert metadata.num_stored == metadata.shape.num_parameters
    small_chat.tokenizer(None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    error = read_metadata(tmp_path.as_uri(), task=ChatData()).template_error
    assert error is not None
    assert "chat template" in error


def test_an_unknown_model_type_and_an_invalid_safetensors_file_are_rejected(encoder: Path) -> None:
    (encoder / "model.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00abcde")
    with pytest.raises(MetadataError, match="safetensors"):
        read_metadata(encoder.as_uri(), task=CLASSIFICATION)
    (encoder / "model.safetensors").unlink()
    config = {"model_type": "made-up", "auto_map": {"AutoModel": "x.Y"}}
    (encoder / "config.json").write_text(json.dumps(config))
    with pytest.raises(MetadataError, match="custom code"):
        read_metadata(encoder.as_uri(), task=CLASSIFICATION)


@pytest.mark.parametrize(
    ("kind", "architecture"),
    [("llama", "LlamaForCausalLM"), ("t5", "T5Model"), ("vit", "ViTModel")],
)
def test_a_model_that_is_no_text_encoder_is_refused_for_retrieval(
    tmp_path: Path, kind: str, architecture: str
) -> None:
    config = {"model_type": kind, "architectures": [architecture]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MetadataError):
        require_encoder(tmp_path.as_uri())
