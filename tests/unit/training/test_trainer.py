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
    ALLOCATOR,
    START_TIMEOUT,
    _run_until_it_fits,
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
    ("fields", "variable", "seconds"),
    [({}, "", 600), ({"num_workers": {"min": 1, "max": 2}}, "", 120), ({}, "1800", 1800)],
)
def test_an_operator_can_give_workers_more_time_to_start(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any], variable: str, seconds: float
) -> None:
    monkeypatch.setenv(START_TIMEOUT, variable)
    if not variable:
        monkeypatch.delenv(START_TIMEOUT)
    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    build_torch_trainer(
        lambda: None, config=TrainingConfig.model_validate(fields), uri="file:///tmp/training"
    )
    assert float(os.environ[START_TIMEOUT]) == seconds


def test_a_worker_without_a_gpu_sees_none() -> None:
    assert worker_environment(TrainingConfig(gpus_per_worker=0))["CUDA_VISIBLE_DEVICES"] == ""
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(TrainingConfig(gpus_per_worker=1))


@pytest.mark.parametrize(
    ("of_driver", "expected"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64"),
    ],
)
def test_a_gpu_worker_allocates_expandable_segments_unless_the_user_has_other_options(
    monkeypatch: pytest.MonkeyPatch, of_driver: dict[str, str], expected: str
) -> None:
    for name in ALLOCATOR:
        monkeypatch.delenv(name, raising=False)
    for name, value in of_driver.items():
        monkeypatch.setenv(name, value)
    assert worker_environment(TrainingConfig(gpus_per_worker=1))["PYTORCH_ALLOC_CONF"] == expected
    assert "PYTORCH_ALLOC_CONF" not in worker_environment(TrainingConfig(gpus_per_worker=0))


def group_timeout(monkeypatch: pytest.MonkeyPatch, config: TrainingConfig) -> Any:
    monkeypatch.setattr(trainer, "live_nodes", lambda: ())
    return build_torch_trainer(
        lambda: None, config=config, uri="file:///tmp/training"
    ).backend_config.timeout_s


def test_by_default_workers_wait_two_hours_for_one_that_works_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert group_timeout(monkeypatch, TrainingConfig()) == 7200


def test_a_training_resumes_with_smaller_micro_batches_until_they_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int | None] = []
    notes: list[NoteEvent] = []

    def fitting(work: Callable[[], int | None], **_: Any) -> Any:
        def fit() -> Any:
            limits.append(work())
            if limits[-1] in (None, 1000):
                raise ControllerError(
                    OutOfMemory(
                        "worker 0: CUDA out of memory", 2, 1000 if len(limits) == 1 else 500
                    )
                )
            return SimpleNamespace(return_value="trained")

        return SimpleNamespace(fit=fit)

    monkeypatch.setattr("training.trainer.build_torch_trainer", fitting)
    monkeypatch.setattr("training.trainer.no_retry_callback", lambda _: None)
    config = TrainingConfig()
    work: Any = lambda config: config.batch_tokens  # noqa: E731
    events = SimpleNamespace(put=SimpleNamespace(remote=notes.append))
    assert (
        _run_until_it_fits(config, work=work, uri="file:///tmp/training", events=events)
        == "trained"
    )
    assert limits == [None, 1000, 500]
    assert [note.text.rpartition(" ")[2] for note in notes] == ["1000", "500"]


def test_a_training_with_a_row_that_does_not_fit_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    def fit() -> None:
        raise ControllerError(OutOfMemory("worker 0: CUDA out of memory", 2))

    monkeypatch.setattr(
        "training.trainer.build_torch_trainer", lambda *_, **__: SimpleNamespace(fit=fit)
    )
    monkeypatch.setattr("training.trainer.no_retry_callback", lambda _: None)
    with pytest.raises(ControllerError):
        _run_until_it_fits(
            TrainingConfig(), work=lambda _: "", uri="file:///tmp/training", events=None
        )
