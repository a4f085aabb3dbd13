"""The rates of a worker are measured on a few rows, without the weights being changed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tailorbird.evaluation.inference import answer_rate
from tailorbird.evaluation.inference.answer_rate import measure_answers
from tests.small_chat import save
from tests.unit.training import test_chat_task
from tests.unit.training.small import config_of, small_runtime
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from training.reports import NOT_MEASURED
from training.throughput import NUM_ROWS, measure_rates


def test_rates_are_measured_on_at_most_a_batch_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime(dropout=0.1)
    before = {name: value.clone() for name, value in runtime.encoder.state_dict().items()}
    monkeypatch.setattr(ClassificationTrainingTask, "load_runtime", lambda *_, **__: runtime)
    rates = measure_rates(runtime.task, config=config_of(batch_size=4, zero_stage=3))
    assert rates.num_rows == 4
    assert min(rates.training, rates.prediction) > 0
    assert all(torch.equal(value, before[name]) for name, value in runtime.encoder.state_dict().items())
    assert measure_rates(runtime.task, config=config_of(batch_size=64)).num_rows == NUM_ROWS


def test_the_rows_are_those_of_one_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime(dropout=0.1)
    monkeypatch.setattr(ClassificationTrainingTask, "load_runtime", lambda *_, **__: runtime)

    def num_rows(**fields: Any) -> int:
        return measure_rates(runtime.task, config=config_of(batch_size=16, **fields)).num_rows

    assert num_rows(num_workers=4) == 4
    assert num_rows(num_workers=4, gradient_accumulation_steps=2) == 2
    longest = int(runtime.train.sample().lengths[:16].max())
    assert num_rows(batch_tokens=longest) == 1
    assert num_rows(batch_tokens=16 * longest) == 16


@pytest.mark.parametrize("method", ["build", "loss"])
def test_a_model_or_a_batch_that_does_not_fit_on_the_gpu_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 110 GiB")

    runtime = small_runtime(dropout=0.1)
    monkeypatch.setattr(ClassificationTrainingTask, "load_runtime", lambda *_, **__: runtime)
    monkeypatch.setattr(ClassifierRuntime, method, refuse)
    assert measure_rates(runtime.task, config=config_of(batch_size=4)) == NOT_MEASURED


def test_answers_of_a_chat_model_are_as_slow_as_the_longest_that_are_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "base")
    task = test_chat_task.task_of((tmp_path / "base").as_uri())
    assert measure_rates(task, config=config_of(batch_size=4)).training > 0
    times = iter((0.0, 2.0) * 2)
    monkeypatch.setattr(answer_rate, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    rows, prompting = test_chat_task.rows_of(4), test_chat_task.PROMPTING
    assert measure_answers(task.base_model, rows=rows, prompting=prompting) == 4 / 2
    longer = prompting.model_copy(update={"max_new_tokens": 64})
    assert measure_answers(task.base_model, rows=rows, prompting=longer) == pytest.approx(4 / 8)  # 16 tokens in 2 s
