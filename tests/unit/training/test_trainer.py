"""Where Ray Train places the workers of a training, and how long it waits for their resources and
for a slow worker."""

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from ray.train import ControllerError

from cluster.progress import NoteEvent
from cluster.resources import Resources
from tailorbird.config.training import TrainingConfig
from training import trainer
from training.errors import OutOfMemory
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
        ({"num_workers": (8, 16), "zero_stage": 3}, [GPU_NODE, GPU_NODE], "PACK"),
        ({"num_workers": 2, "zero_stage": 3, "gpus_per_worker": 0}, [GPU_NODE], "PACK"),
    ],
)
def test_the_gpus_of_one_node_train_at_stage_3_if_it_has_enough(
    fields: dict[str, Any], nodes: list[Resources], strategy: str
) -> None:
    config = TrainingConfig.model_validate({"gpus_per_worker": 1} | fields)
    assert placement_strategy(config, nodes=nodes) == strategy


@pytest.mark.parametrize(
    ("variable", "seconds"), [(None, [600, 120, 600]), ("1800", [1800, 1800, 1800])]
)
def test_an_operator_can_give_the_workers_of_all_trainings_more_time_to_start(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, seconds: list[float]
) -> None:
    monkeypatch.setenv(START_TIMEOUT, variable or "")
    if variable is None:
        monkeypatch.delenv(START_TIMEOUT)
    trainer._operator_timeout.cache_clear()
    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    timeouts = []
    for fields in ({}, {"num_workers": (1, 2)}, {}):
        config = TrainingConfig.model_validate(fields)
        build_torch_trainer(lambda: None, config=config, uri="file:///tmp/training")
        timeouts.append(float(os.environ[START_TIMEOUT]))
    trainer._operator_timeout.cache_clear()
    assert timeouts == seconds


def test_a_worker_without_a_gpu_sees_none() -> None:
    assert worker_environment(TrainingConfig(gpus_per_worker=0))["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(TrainingConfig(gpus_per_worker=1))


def test_a_training_resumes_with_smaller_micro_batches_until_they_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int | None] = []
    notes: list[NoteEvent] = []

    def build(work: Callable[[], int | None], *, uri: str, **_: Any) -> Any:
        assert uri == "file:///tmp/training"  # the folder with the checkpoints

        def fit() -> Any:
            limits.append(work())
            if limits[-1] != 500:
                raise ControllerError(OutOfMemory(1000 if limits[-1] is None else 500))
            return SimpleNamespace(return_value="trained")

        return SimpleNamespace(fit=fit)

    def work(config: TrainingConfig) -> Any:
        return TrainingConfig.model_validate(config.model_dump()).batch_tokens

    monkeypatch.setattr(trainer, "build_torch_trainer", build)
    config = TrainingConfig()
    events = SimpleNamespace(put=SimpleNamespace(remote=notes.append))
    outcome = trainer._run_until_it_fits(
        config, work=work, uri="file:///tmp/training", events=events
    )
    assert outcome == "trained"
    assert limits == [None, 1000, 500]
    assert [note.text.rpartition(" ")[2] for note in notes] == ["1000", "500"]
