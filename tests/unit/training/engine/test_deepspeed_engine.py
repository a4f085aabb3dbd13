"""The learning rate schedule, the parameter groups and DeepSpeed's configuration."""

from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.utils.config import get_timers_config
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tailorbird.config.training import TrainingConfig
from tailorbird.models.classifier import Classifier
from training.batches import micro_batches
from training.engine.deepspeed_engine import (
    WEIGHT_DECAY,
    deepspeed_config,
    linear_schedule,
    parameter_groups,
)


def options(*, autocast: bool = True, **fields: Any) -> dict[str, Any]:
    training = TrainingConfig.model_validate(fields)
    return deepspeed_config(training, num_workers=2, autocast=autocast)


def rates(steps: int, *, fraction: float) -> list[float]:
    """Return the rate, as a share of the peak, at each step and at two more steps."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = linear_schedule(optimizer, num_steps=steps, warmup_fraction=fraction)
    values = []
    for _ in range(steps + 2):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return values


@given(steps=st.integers(1, 500), fraction=st.floats(0, 0.9))
def test_the_rate_rises_to_its_peak_and_falls_to_zero_after_the_last_step(
    steps: int, fraction: float
) -> None:
    *values, end, after = rates(steps, fraction=fraction)
    peak = values.index(max(values))
    assert all(0 < value <= 1 for value in values)
    assert values[: peak + 1] == sorted(values[: peak + 1])
    assert values[peak:] == sorted(values[peak:], reverse=True)
    assert max(values) == 1
    assert end == after == 0


@pytest.mark.parametrize("batch_size", [100, 128, 720_720])
def test_any_batch_size_is_met_by_every_number_of_workers_without_larger_micro_batches(
    batch_size: int,
) -> None:
    """Each number of workers between 8 and 16 once had to divide the batch size: 720,720 was the
    smallest."""
    training = TrainingConfig(batch_size=batch_size, num_workers=(8, 16))
    sizes_of_ranks = []
    for num_workers in range(8, 17):
        config = deepspeed_config(training, num_workers=num_workers, autocast=True)
        micro = config["train_micro_batch_size_per_gpu"]
        steps = config["gradient_accumulation_steps"]
        sizes_of_ranks.append(micro)
        lengths = np.ones(batch_size, dtype=np.int64)
        of_ranks = micro_batches(lengths, np.arange(batch_size), training, num_ranks=num_workers)
        assert {len(parts) for parts in of_ranks} == {steps}
        sizes = [len(part) for parts in of_ranks for part in parts]
        assert sum(sizes) == batch_size
        assert max(sizes) == micro
    assert max(sizes_of_ranks) == sizes_of_ranks[-1]


@pytest.mark.parametrize(
    ("offload", "states"),
    [("optimizer", {"offload_optimizer"}), ("parameters", {"offload_optimizer", "offload_param"})],
)
def test_offload_selects_the_states_in_cpu_memory(offload: str, states: set[str]) -> None:
    config = options(autocast=False, zero_stage=3, offload=offload)
    assert config["torch_autocast"]["enabled"] is False
    in_memory = {state: {"device": "cpu"} for state in states}
    assert config["zero_optimization"] == {"stage": 3, "reduce_scatter": False} | in_memory


def test_deepspeed_options_of_a_recipe_override_the_defaults() -> None:
    plain = options()
    zero = {"reduce_bucket_size": 1000}
    changed = options(deepspeed={"zero_optimization": zero, "wall_clock_breakdown": True})
    expected = {"zero_optimization": plain["zero_optimization"] | zero}
    assert changed == plain | expected | {"wall_clock_breakdown": True}


def test_gradients_are_scattered_and_rounded_only_over_nccl() -> None:
    on_gpus = options(gpus_per_worker=1)
    assert on_gpus["zero_optimization"] == {"stage": 1}
    assert on_gpus["torch_autocast"] == {"enabled": True, "dtype": "bfloat16"}
    on_cpus = options()
    assert on_cpus["zero_optimization"] == {"stage": 1, "reduce_scatter": False}
    assert on_cpus["torch_autocast"]["lower_precision_safe_modules"] == []


@pytest.mark.parametrize(("dtype", "bf16"), [("fp32", False), ("bf16", True)])
def test_bf16_parameters_replace_autocast(dtype: str, bf16: bool) -> None:
    config = options(parameter_dtype=dtype)
    assert (config["bf16"]["enabled"], config["torch_autocast"]["enabled"]) == (bf16, not bf16)
    assert get_timers_config(config).enabled is False  # they wait for the GPU


def test_only_matrices_decay_and_the_head_has_a_higher_rate() -> None:
    encoder = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4))
    frozen = encoder[2].weight
    frozen.requires_grad_(False)
    model = Classifier(encoder, nn.Linear(4, 2))
    config = TrainingConfig(learning_rate=1e-3)
    matrices, vectors, head = parameter_groups(model, config)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert {p.ndim for p in vectors["params"]} == {1}
    assert len(head["params"]) == 2
    assert (matrices["lr"], vectors["lr"], head["lr"]) == (1e-3, 1e-3, 1e-2)
    assert (matrices["weight_decay"], vectors["weight_decay"], head["weight_decay"]) == (
        WEIGHT_DECAY,
        0.0,
        0.0,
    )
    assert all(p is not frozen for group in (matrices, vectors, head) for p in group["params"])
