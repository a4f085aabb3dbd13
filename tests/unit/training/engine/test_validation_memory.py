"""The memory of the forward passes in which a classifier is validated, as estimated and as
measured."""

from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, BertConfig, BertModel

from tailorbird.data.tokenized import TokenizedRows, TokenLists
from tailorbird.models.metadata import shape_of
from tailorbird.models.pretrained import without_pooler
from tests.tracked_memory import TrackedMemory
from tests.unit.training.small import config_of, small_runtime
from training.classification_task import ClassifierRuntime
from training.engine.deepspeed_private import destroy_engine
from training.engine.memory_estimate import (
    VALIDATION_TOKENS,
    BatchShape,
    validation_bytes,
)
from training.loop import build_engine

LENGTH = 256
SIZES = {"vocab_size": 50, "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = {f"{name}_token_id": 1 for name in ("bos", "eos", "cls", "sep")}


def bert() -> nn.Module:
    return without_pooler(BertModel(BertConfig(**SIZES, intermediate_size=512)))


def modernbert() -> Any:
    config = AutoConfig.for_model(
        "modernbert", **SIZES, **IDS, pad_token_id=0, intermediate_size=192
    )
    return AutoModel.from_config(config)


def validating_runtime(encoder: nn.Module) -> ClassifierRuntime:
    """Return a runtime whose validation is one pass of 64 rows on CPU, as many tokens as on a GPU,
    with padding."""
    lengths = [LENGTH] * (VALIDATION_TOKENS // LENGTH - 1) + [LENGTH - 1]
    tokens = TokenLists([[5] * length for length in lengths], labels=("0",) * len(lengths))
    names = ("",) * len(lengths)
    tokenized = TokenizedRows.from_lists(names, tokens, classes=("0", "1", "2"))
    return replace(small_runtime(dropout=0.0), encoder=encoder, validation=tokenized)


@pytest.mark.parametrize(
    ("kind", "fields", "autocast"),
    [
        (bert, {}, False),
        (bert, {"method": "lora"}, True),
        (bert, {"zero_stage": 1, "method": "lora", "parameter_dtype": "bf16"}, False),
        (bert, {"zero_stage": 3}, True),
        (modernbert, {}, False),
        (modernbert, {"method": "lora"}, True),
        (modernbert, {"zero_stage": 1, "parameter_dtype": "bf16"}, False),
    ],
)
def test_a_validation_needs_at_most_its_estimate_and_at_least_a_third_of_it(
    kind: Any, fields: dict[str, Any], autocast: bool
) -> None:
    torch.manual_seed(0)
    runtime = validating_runtime(kind())
    config = config_of(**fields)
    dtype = torch.bfloat16 if autocast else torch.float32
    with mock.patch("training.loop.inference_dtype", return_value=dtype), TrackedMemory() as memory:
        engine = build_engine(config, runtime)
        held = memory.bytes
        memory.reset_peak()
        runtime.score(engine, config)
        measured = memory.reset_peak() - held
    destroy_engine(engine)
    estimate = validation_bytes(
        config, shape=shape_of(runtime.encoder), batch=BatchShape(LENGTH, autocast=autocast)
    )
    assert measured <= estimate <= 3 * measured
