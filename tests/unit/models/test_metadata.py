import json
from pathlib import Path

import pytest
from transformers import BertConfig, BertModel

from tailorbird.data.rows import DataError
from tailorbird.data.tasks import CLASSIFICATION, ChatData
from tailorbird.models.loading import load_encoder
from tailorbird.models.lora import add_adapter
from tailorbird.models.metadata import MetadataError, read_metadata, require_length, shape_of
from tests import small_chat


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    config = BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32)
    BertModel(config).save_pretrained(tmp_path)
    small_chat.tokenizer().save_pretrained(tmp_path)
    return tmp_path


def test_an_encoder_s_sizes_are_those_of_the_model_that_would_be_trained(encoder: Path) -> None:
    metadata = read_metadata(encoder.as_uri(), task=CLASSIFICATION)
    loaded = load_encoder(encoder)
    assert metadata.shape.num_parameters == sum(parameter.numel() for parameter in loaded.parameters())
    assert (metadata.kind, metadata.is_encoder_decoder, metadata.longest) == ("bert", False, 512)
    assert metadata.num_stored >= metadata.shape.num_parameters  # the pooler is stored too
    assert (metadata.shape.hidden, metadata.shape.intermediate, metadata.shape.gated) == (16, 32, False)
    assert metadata.shape.attention_dropout == 0.1


def test_an_adapter_has_as_many_parameters_as_the_shape_tells(encoder: Path) -> None:
    shape = read_metadata(encoder.as_uri(), task=CLASSIFICATION).shape
    adapted = add_adapter(load_encoder(encoder), r=4, alpha=8, dropout=0.0)
    assert 4 * shape.num_linear_ends == sum(
        parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
    )


def test_a_chat_model_s_adapter_leaves_its_output_out() -> None:
    model = small_chat.language_model()
    shape = shape_of(model)
    assert shape.gated
    adapted = add_adapter(model, r=2, alpha=4, dropout=0.0)
    assert 2 * shape.num_linear_ends == sum(
        parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad
    )


def test_a_chat_model_s_template_is_tried(tmp_path: Path) -> None:
    small_chat.save(tmp_path)
    metadata = read_metadata(tmp_path.as_uri(), task=ChatData())
    assert (metadata.is_causal, metadata.template_error, metadata.longest) == (True, None, 256)
    assert metadata.num_stored == metadata.shape.num_parameters
    small_chat.tokenizer(None).save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    error = read_metadata(tmp_path.as_uri(), task=ChatData()).template_error
    assert error is not None
    assert "chat template" in error


def test_rows_longer_than_the_model_s_positions_are_refused(encoder: Path) -> None:
    require_length(encoder.as_uri(), max_length=512, task=CLASSIFICATION)
    with pytest.raises(DataError, match=r"max_length 513 is more than the 512 tokens.* set it to 512 or less"):
        require_length(encoder.as_uri(), max_length=513, task=CLASSIFICATION)


def test_a_configuration_that_names_no_known_model_is_refused(encoder: Path) -> None:
    (encoder / "config.json").write_text(json.dumps({"model_type": "made-up", "auto_map": {"AutoModel": "x.Y"}}))
    with pytest.raises(MetadataError, match=r"transformers makes no model of its config\.json"):
        read_metadata(encoder.as_uri(), task=CLASSIFICATION)


def test_a_file_that_is_no_safetensors_is_refused(encoder: Path) -> None:
    (encoder / "model.safetensors").write_bytes(b"\x05\x00\x00\x00\x00\x00\x00\x00abcde")
    with pytest.raises(MetadataError, match=r"model\.safetensors is no safetensors file"):
        read_metadata(encoder.as_uri(), task=CLASSIFICATION)
