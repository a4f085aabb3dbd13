"""Forward and backward passes do not wait for a GPU: they read no value of a tensor."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertConfig, BertModel

from tailorbird.models.pretrained import load_encoder
from tests.unit.device_reads import DeviceReads
from tests.unit.training.small import config_of, small_runtime
from tests.unit.training.test_chat_task import runtime_of
from training.dataset import sampled_rows
from training.engine.deepspeed_private import destroy_engine
from training.loop import build_engine
from training.task import TaskRuntime


def reads_of_a_pass(runtime: TaskRuntime, rows: list[int], **fields: Any) -> list[str]:
    """Return the places of the reads in the forward and backward pass of the third step.

    At stage 3, DeepSpeed compares the order of the modules between the ranks in the first two
    steps.
    """
    config = config_of(**fields)
    engine = build_engine(config, runtime)
    batch = runtime.collate(config, sampled_rows(runtime.train), np.array(rows))
    for _ in range(3):
        with DeviceReads() as reads:
            engine.backward(runtime.loss(engine, config, batch))
        engine.step()
    destroy_engine(engine)
    places: list[str] = reads.places
    return places


@pytest.mark.parametrize("stage", [0, 2, 3])
@pytest.mark.parametrize("equal", [False, True])
def test_a_pass_of_a_classifier_reads_nothing(equal: bool, stage: int, tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
    )
    BertModel(config).save_pretrained(tmp_path)
    runtime = replace(small_runtime(dropout=0.1), encoder=load_encoder(tmp_path))
    lengths = sampled_rows(runtime.train).lengths
    rows = [0, 1, 2, 3]
    if equal:
        rows = np.flatnonzero(lengths == np.bincount(lengths).argmax()).tolist()
    assert len(rows) > 1
    assert (len(set(lengths[rows])) == 1) is equal
    assert reads_of_a_pass(runtime, rows, zero_stage=stage) == []


@pytest.mark.parametrize(
    "fields", [{}, {"zero_stage": 3, "gradient_checkpointing": True}, {"method": "lora"}], ids=str
)
def test_a_pass_of_a_language_model_reads_nothing(fields: dict[str, Any]) -> None:
    runtime = runtime_of()
    assert reads_of_a_pass(runtime, [0, 1], **fields) == []
