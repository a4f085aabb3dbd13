"""Where Ray Train places the workers of a training, and how long it waits for their resources and
for a slow worker."""

import os
from typing import Any

import pytest

from cluster.resources import Resources
from tailorbird.config.training import TrainingConfig
from training import trainer
from training.trainer import (
    START_TIMEOUT,
    build_torch_trainer,
    placement_strategy,
    worker_environment,
)

GPU_NODE = Resources(64, 8)


@pytest.mark.parametrize(
    ("fields", "nodes", "strategy"),
    [
        ({"num_workers": 8, "zero_stage": 3}, [Resources(8), GPU_NODE], "STRICT_PACK"),
        ({"num_workers": 16, "zero_stage": 3, "batch_size": 32}, [GPU_NODE, GPU_NODE], "PACK"),
        ({"num_workers": 8, "zero_stage": 1}, [GPU_NODE], "PACK"),
        ({"num_workers": {"min": 8, "max": 16}, "zero_stage": 3}, [GPU_NODE, GPU_NODE], "PACK"),
        ({"num_workers": 2, "zero_stage": 3, "gpus_per_worker": 0}, [GPU_NODE], "PACK"),
    ],
)
def test_the_gpus_of_one_node_train_at_stage_3_if_it_has_enough(
    fields: dict[str, Any], nodes: list[Resources], strategy: str
) -> None:
    config = TrainingConfig.model_validate({"gpus_per_worker": 1} | fields)
    assert placement_strategy(config, nodes=nodes) == strategy


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [({}, 600), ({"num_workers": {"min": 1, "max": 2}}, 120), ({"start_timeout_s": 1800}, 1800)],
)
def test_the_start_of_workers_may_take_as_long_as_the_recipe_says(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], seconds: float
) -> None:
    monkeypatch.setenv(START_TIMEOUT, "1")
    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    build_torch_trainer(
        lambda: None, config=TrainingConfig.model_validate(fields), uri="file:///tmp/training"
    )
    assert float(os.environ[START_TIMEOUT]) == seconds


def test_a_worker_without_a_gpu_sees_none() -> None:
    assert worker_environment(TrainingConfig(gpus_per_worker=0))["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(TrainingConfig(gpus_per_worker=1))
