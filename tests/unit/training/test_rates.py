"""The rates of a worker are measured on a few rows, without the weights being changed."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tailorbird.evaluation.inference import answer_rate
from tailorbird.evaluation.inference.answer_rate import measure_answers
from tests.small_chat import save
from tests.unit.training import test_chat_task
from tests.unit.training.small import config_of, small_runtime
from training.classification_task import ClassificationTrainingTask
from training.rates import NUM_ROWS, measure_rates


def test_rates_are_measured_on_at_most_a_batch_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = small_runtime(dropout=0.1)
    before = {name: value.clone() for name, value in runtime.encoder.state_dict().items()}
    monkeypatch.setattr(ClassificationTrainingTask, "load_runtime", lambda *_, **__: runtime)
    rates = measure_rates(runtime.task, config=config_of(batch_size=4, zero_stage=3))
    assert rates.num_rows == 4
    assert min(rates.training, rates.prediction) > 0
    assert all(torch.equal(value, before[name]) for name, value in runtime.encoder.state_dict().items())
    assert measure_rates(runtime.task, config=config_of(batch_size=64)).num_rows == NUM_ROWS


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
