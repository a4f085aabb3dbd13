"""The memory estimate of a worker, and its comparison with real trainings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.training.memory import Case, measure
from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape
from training.engine.memory_estimate import (
    GIB,
    BatchShape,
    WorkerMemory,
    activation_bytes,
    worker_memory,
)

MINILM = ModelShape(
    num_parameters=22_565_376,
    num_linear=10_616_832,
    num_linear_ends=41_472,
    hidden=384,
    intermediate=1536,
    num_layers=6,
    num_heads=12,
    vocabulary=30_522,
    attention_dropout=0.1,
)
LONG = BatchShape(4096, packed=True, autocast=True)


def llama(
    *, hidden: int, intermediate: int, layers: int, vocabulary: int = 128_256, kv: int = 1024
) -> ModelShape:
    """Return the shape of a Llama 3 model."""
    per_layer = 2 * hidden * hidden + 2 * hidden * kv + 3 * hidden * intermediate
    linear = layers * per_layer + vocabulary * hidden
    ends = layers * (4 * hidden + 2 * (hidden + kv) + 3 * (hidden + intermediate))
    return ModelShape(
        num_parameters=linear + vocabulary * hidden + (2 * layers + 1) * hidden,
        num_linear=linear,
        num_linear_ends=ends,
        hidden=hidden,
        intermediate=intermediate,
        num_layers=layers,
        num_heads=hidden // 128,
        vocabulary=vocabulary,
        gated=True,
        kv_width=kv,
        stored_bf16=True,
    )


LLAMA_8B = llama(hidden=4096, intermediate=14_336, layers=32)
LLAMA_70B = llama(hidden=8192, intermediate=28_672, layers=80)


def config_of(**fields: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"num_workers": 4, "zero_stage": 0} | fields)


def memory_of(**fields: Any) -> WorkerMemory:
    """Return the memory of MiniLM on one of four CPU workers."""
    return worker_memory(config_of(**fields), shape=MINILM, batch=BatchShape(64), num_workers=4)


def on_gpus(num_workers: int, shape: ModelShape, **fields: Any) -> WorkerMemory:
    values = {"num_workers": num_workers, "batch_size": num_workers, "gpus_per_worker": 1}
    config = TrainingConfig.model_validate(
        values | {"gradient_checkpointing": True, "zero_stage": 3} | fields
    )
    return worker_memory(config, shape=shape, batch=LONG, num_workers=num_workers)


N, ADAPTER = MINILM.num_parameters, 16 * MINILM.num_linear_ends


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (4 * N, 4 * N, 8 * N)),
        ({"zero_stage": 1}, (4 * N, 4 * N, 16 * N // 4)),
        # The weights are copied before there are optimizer states.
        ({"zero_stage": 2}, (4 * N, max(4 * N // 4, 4 * N - 16 * N // 4), 16 * N // 4)),
        ({"zero_stage": 3}, (4 * N // 4, 4 * N // 4, 16 * N // 4)),
        ({"parameter_dtype": "bf16"}, (2 * N, 2 * N, 18 * N)),
        ({"zero_stage": 1, "parameter_dtype": "bf16"}, (2 * N, 2 * N, 18 * N // 4)),
        ({"method": "lora", "lora_r": 16}, (4 * (N + ADAPTER), 4 * ADAPTER, 8 * ADAPTER)),
    ],
)
def test_a_stage_shards_states_and_only_trained_weights_have_gradients(
    fields: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    host = memory_of(**fields).host
    assert (host["weights"], host["gradients"], host["optimizer states"]) == expected


def test_a_70b_model_with_lora_fits_8_gpus_of_80_gib() -> None:
    memory = on_gpus(8, LLAMA_70B, method="lora")
    assert memory.device["weights"] / GIB == pytest.approx(17, rel=0.03)
    assert memory.device_bytes / GIB < 75


def test_offloaded_states_are_in_host_memory() -> None:
    plain, optimizer, all_of_them = (
        on_gpus(6, LLAMA_8B, offload=offload) for offload in ("none", "optimizer", "parameters")
    )
    trained = LLAMA_8B.num_parameters // 6
    assert optimizer.host_bytes - plain.host_bytes == pytest.approx(1.5 * 20 * trained, rel=0.001)
    assert optimizer.device == {
        name: size
        for name, size in plain.device.items()
        if name not in ("gradients", "optimizer states")
    }
    assert all_of_them.device_bytes == optimizer.device_bytes - plain.device["weights"]
    assert all_of_them.host["offloaded weights"] == pytest.approx(1.5 * 2 * 4 * trained, rel=0.001)


def test_offloaded_states_of_a_cpu_worker_are_counted_too() -> None:
    memory = memory_of(zero_stage=1, offload="optimizer")
    assert memory.host["offloaded optimizer states"] == int(1.5 * (16 * N // 4))
    assert not memory.device


def test_smaller_micro_batches_and_checkpointing_need_less_memory() -> None:
    def activations(number: int = 4, length: int = 64, **fields: Any) -> int:
        config = config_of(**{"num_workers": number, "batch_size": 64} | fields)
        batch = BatchShape(length)
        return activation_bytes(config, shape=MINILM, batch=batch, num_workers=number)

    full_batch = activations()
    assert activations(batch_tokens=4 * 64 + 63) == full_batch // 4
    assert activations(batch_tokens=100 * 64) == full_batch
    assert activations(batch_tokens=63) == full_batch // 16  # a row is never split
    assert activations(2) == 2 * full_batch
    # Two workers of an elastic training accumulate micro-batches.
    assert activations(2, num_workers=(2, 4)) == full_batch
    assert activations(gradient_checkpointing=True) < full_batch / 2
    assert activations(length=128) > 2 * full_batch  # attention weights grow quadratically
    assert activations(length=128, attention_dropout=0.0) < activations(length=128)
    assert activations(method="lora") > full_batch


def test_logits_of_a_long_context_are_counted_in_chunks() -> None:
    def activations(length: int, shape: ModelShape = LLAMA_8B) -> int:
        config = config_of(
            num_workers=1, batch_size=1, gpus_per_worker=1, gradient_checkpointing=True
        )
        return activation_bytes(
            config, shape=shape, batch=replace(LONG, max_length=length), num_workers=1
        )

    assert activations(8192) < 8 * activations(1024) - 6 * GIB
    assert activations(8192, replace(LLAMA_8B, needs_all_logits=True)) == 8 * activations(1024)
    assert 20 < activations(32_768) / GIB < 35  # the logits alone would take 55 GiB


@pytest.mark.long
def test_no_real_training_needs_more_than_the_estimate_and_none_less_than_half(
    tmp_path: Path,
) -> None:
    lora, bf16 = {"method": "lora"}, {"parameter_dtype": "bf16"}
    less = {"gradient_checkpointing": True}
    options: list[dict[str, Any]] = [{}, less, lora, lora | less, bf16]
    fields = [{"zero_stage": stage} | more for stage in (1, 3) for more in options]
    fields += [{"zero_stage": 0} | bf16, {"zero_stage": 0}, {"zero_stage": 2}]
    fields += [{"zero_stage": stage, "offload": "optimizer"} for stage in (1, 2, 3)]
    cases = [Case("1m", each) for each in fields]
    for name, figures in measure(cases, folder=tmp_path).items():
        assert 1 <= figures["estimate / peak"] <= 2, (name, figures)
