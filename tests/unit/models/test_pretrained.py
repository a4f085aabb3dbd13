"""A model that is loaded in bf16 computes like one that is loaded in fp32 and cast, and so it is
loaded directly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tailorbird.models.pretrained import cast_parameters, load_causal, load_encoder
from tests.small_chat import language_model, model_of, save

LENGTH = 200


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return dict(model.named_buffers())


def assert_equal_models(loaded: nn.Module, cast: nn.Module) -> None:
    """Check that all parameters and buffers have the same dtype and values."""
    for values in (dict(loaded.named_parameters()), buffers(loaded)):
        others = {**dict(cast.named_parameters()), **buffers(cast)}
        for name, value in values.items():
            assert value.dtype == others[name].dtype, name
            assert torch.equal(value, others[name]), name
    assert buffers(loaded).keys() == buffers(cast).keys()


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        (
            "llama",
            {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0}},
        ),
        ("qwen2", {}),
        ("qwen3", {}),
        ("gemma3_text", {}),  # scales embeddings by a buffer
    ],
    ids=lambda value: value if isinstance(value, str) else "scaled" if value else "plain",
)
def test_a_language_model_loaded_in_bf16_is_one_that_was_cast(
    kind: str, fields: dict[str, Any], stored: torch.dtype, tmp_path: Path
) -> None:
    save(tmp_path, model_of(kind, **fields).to(stored))
    ids = torch.arange(LENGTH)[None] % 40
    loaded, cast = (
        load_causal(tmp_path, dtype=torch.bfloat16),
        cast_parameters(load_causal(tmp_path), torch.bfloat16),
    )
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, cast(input_ids=ids).logits)
    if kind != "gemma3_text":  # rounds the buffer when it uses it
        assert_equal_models(loaded, cast)


def test_a_decoder_used_as_an_encoder_keeps_no_keys_and_values(tmp_path: Path) -> None:
    lm = language_model()
    lm.model.save_pretrained(tmp_path)
    encoder, ids = load_encoder(tmp_path).eval(), torch.tensor([[5, 6, 7]])
    output = encoder(input_ids=ids)
    assert output.past_key_values is None
    assert torch.equal(output.last_hidden_state, lm.model(input_ids=ids).last_hidden_state)
