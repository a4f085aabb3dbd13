"""The memory estimate of a worker, and its comparison with the peak memory of a real training."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tailorbird.config.training import TrainingConfig
from tailorbird.models.shape import ModelShape
from training.memory_estimate import Batch, activation_bytes, worker_memory
from training.trainer import worker_environment

ROOT = Path(__file__).parents[3]
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
FACTOR = 1.5
"""Largest allowed ratio between the estimate and the measured peak, in both directions."""
MIB = 1 << 20


def config_of(**fields: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"num_workers": 4, "zero_stage": 0} | fields)


def parts(*, num_workers: int = 4, batch: Batch | None = None, **fields: Any) -> dict[str, int]:
    memory = worker_memory(config_of(**fields), shape=MINILM, batch=batch or Batch(64), num_workers=num_workers)
    return memory.host | {f"device {name}": size for name, size in memory.device.items()}


def test_each_stage_shards_one_more_state() -> None:
    number = MINILM.num_parameters
    none, states, gradients, weights = (parts(zero_stage=stage) for stage in (0, 1, 2, 3))
    assert (none["weights"], none["gradients"], none["optimizer states"]) == (4 * number, 4 * number, 8 * number)
    assert states["optimizer states"] == 8 * number // 4
    assert states["weights of the optimizer"] == 4 * number // 4
    assert gradients["gradients"] == 4 * number // 4
    assert weights["weights"] == 4 * number // 4 + 4 * number  # all weights of a small model are in use at once


def test_stage_3_keeps_no_full_copy_of_a_large_model() -> None:
    large = ModelShape(
        num_parameters=70_000_000_000,
        num_linear=0,
        num_linear_ends=0,
        hidden=8192,
        intermediate=28_672,
        num_layers=80,
        num_heads=64,
        vocabulary=128_000,
        gated=True,
    )
    config = config_of(zero_stage=3, gpus_per_worker=1)
    device = worker_memory(config, shape=large, batch=Batch(64), num_workers=64).device
    assert device["weights"] < 4 * large.num_parameters / 10


def test_only_the_adapter_has_gradients_and_optimizer_states() -> None:
    full, lora = parts(), parts(method="lora", lora_r=16)
    trained = 16 * MINILM.num_linear_ends
    assert lora["gradients"] == 4 * trained
    assert lora["optimizer states"] == 8 * trained
    assert lora["weights"] == full["weights"] + 4 * trained


def test_smaller_micro_batches_and_checkpointing_need_less_memory() -> None:
    def activations(num_workers: int = 4, length: int = 64, **fields: Any) -> int:
        return activation_bytes(config_of(**fields), shape=MINILM, batch=Batch(length), num_workers=num_workers)

    full_batch = activations(batch_size=64)
    assert activations(batch_size=64, gradient_accumulation_steps=4) == full_batch // 4
    assert activations(batch_size=64, batch_tokens=4 * 64 + 63) == full_batch // 4
    assert activations(batch_size=64, batch_tokens=100 * 64) == full_batch
    assert activations(batch_size=64, num_workers=2) == 2 * full_batch
    assert activations(batch_size=64, gradient_checkpointing=True) < full_batch / 2
    assert activations(batch_size=64, length=128) > 2 * full_batch  # attention weights grow quadratically
    assert activations(batch_size=64, length=128, attention_dropout=0.0) < activations(batch_size=64, length=128)


def test_logits_of_a_chat_model_need_memory_for_the_vocabulary() -> None:
    both = [
        activation_bytes(config_of(), shape=MINILM, batch=Batch(64, packed=packed), num_workers=4)
        for packed in (False, True)
    ]
    assert both[1] - both[0] >= 8 * 64 * 3 * 4 * MINILM.vocabulary


def test_offloaded_states_are_counted_as_host_memory() -> None:
    plain = parts(zero_stage=3, gpus_per_worker=1)
    offloaded = parts(zero_stage=3, gpus_per_worker=1, offload="parameters")
    assert "device optimizer states" in plain
    assert "device activations" in offloaded
    assert offloaded["optimizer states"] == plain["device optimizer states"]
    assert offloaded["weights"] == plain["device weights"]
    assert "device weights" not in offloaded


def test_the_estimate_is_near_the_peak_of_a_real_training() -> None:
    """Compare with a full fine-tuning of MiniLM's shape (two steps, validation and export) in a separate process."""
    config, length = config_of(num_workers=1, zero_stage=1, batch_size=16, epochs=2), 64
    process = subprocess.run(
        [sys.executable, "-m", "tests.unit.training.measure_memory", config.model_dump_json(), str(length)],
        cwd=ROOT,
        env=dict(os.environ) | worker_environment(config),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    peak = int(process.stdout.splitlines()[-1])
    estimate = worker_memory(config, shape=MINILM, batch=Batch(length), num_workers=1)
    ratio = estimate.host_bytes / peak
    print(f"estimate {estimate.host_bytes / MIB:.0f} MiB, peak {peak / MIB:.0f} MiB")
    assert 1 / FACTOR < ratio < FACTOR, (estimate.host, peak)
