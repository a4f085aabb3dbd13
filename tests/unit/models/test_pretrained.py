"""A model that is cast to bf16 computes like one that is loaded in bf16."""

from pathlib import Path

import torch

from tailorbird.models.pretrained import cast_parameters, load_causal
from tests.small_chat import language_model, save

LENGTH = 200


def test_a_cast_model_has_the_logits_of_a_model_loaded_in_bf16(tmp_path: Path) -> None:
    save(tmp_path, language_model(width=64))
    ids = torch.arange(LENGTH)[None] % 40
    loaded, cast = load_causal(tmp_path, dtype=torch.bfloat16), cast_parameters(load_causal(tmp_path), torch.bfloat16)
    with torch.no_grad():
        expected = loaded(input_ids=ids).logits
        assert torch.equal(cast(input_ids=ids).logits, expected)
        # The frequencies of the rotary embeddings are buffers, which `Module.to` rounds too.
        assert not torch.equal(cast.to(torch.bfloat16)(input_ids=ids).logits, expected)
