"""Encoders mask padding without a read of the device, and with the results of transformers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, DistilBertConfig

from tailorbird.data.tokenize import collate
from tailorbird.models.classifier import Classifier
from tailorbird.models.pooling.pool import pool
from tailorbird.models.pretrained import load_encoder
from tailorbird.registry.pooling import MEAN
from tests.small_chat import language_model
from tests.unit.device_reads import DeviceReads

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
NO_IDS = dict.fromkeys(f"{name}_token_id" for name in ("bos", "eos", "cls", "sep"))
PADDED_ROWS, EQUAL_ROWS = [[5, 6, 7, 8], [8], [9, 10]], [[5, 6, 7, 8], [8, 7, 6, 5]]


def encoder_of(kind: str, folder: Path) -> Path:
    """Save a tiny random encoder of a model type of transformers, and return its folder."""
    torch.manual_seed(0)
    if kind == "modernbert":  # the second layer attends to one token on each side
        config = AutoConfig.for_model(
            kind, **SIZES, pad_token_id=0, **NO_IDS, local_attention=2, global_attn_every_n_layers=2
        )
    elif kind == "distilbert":
        config = DistilBertConfig(vocab_size=50, dim=32, hidden_dim=64, n_layers=2, n_heads=2)
    else:
        config = AutoConfig.for_model(kind, **SIZES, pad_token_id=0)
    AutoModel.from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("rows", [PADDED_ROWS, EQUAL_ROWS], ids=["padded", "equal"])
@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "modernbert"])
def test_an_encoder_reads_nothing_and_has_the_hidden_states_of_transformers(
    kind: str, rows: list[list[int]], tmp_path: Path
) -> None:
    folder = encoder_of(kind, tmp_path)
    model = Classifier(load_encoder(folder), torch.nn.Linear(32, 2)).eval()
    plain = AutoModel.from_pretrained(folder).eval()
    input_ids, mask = collate(rows, pad_id=0)
    ones = torch.ones_like(input_ids) if mask is None else mask
    with torch.no_grad():
        with DeviceReads() as reads:
            embedded = model.embed(input_ids, mask)
        with DeviceReads() as plain_reads:
            expected = pool(
                plain(input_ids=input_ids, attention_mask=ones).last_hidden_state,
                ones,
                pooling=MEAN,
            )
    assert plain_reads.places  # of the mask; without them, this attention is not needed
    assert reads.places == []
    assert torch.equal(embedded, expected)


def test_a_model_with_an_attention_of_its_own_keeps_it(tmp_path: Path) -> None:
    config = AutoConfig.for_model("deberta-v2", **SIZES, pad_token_id=0)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    encoder: Any = load_encoder(tmp_path)
    assert encoder.config._attn_implementation == "eager"


def test_a_decoder_used_as_an_encoder_keeps_no_keys_and_values(tmp_path: Path) -> None:
    language_model().model.save_pretrained(tmp_path)
    encoder: Any = load_encoder(tmp_path).eval()
    assert encoder(input_ids=torch.tensor([[5, 6, 7]])).past_key_values is None
