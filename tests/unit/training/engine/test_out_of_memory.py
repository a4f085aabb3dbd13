"""A lack of GPU memory halves the micro-batches, or ends the training with advice."""

from typing import Any

import pytest
import torch

from tests.unit.training.small import config_of, small_runtime
from training.batch import Batch
from training.classification_task import ClassifierRuntime
from training.engine.out_of_memory import out_of_memory_reported
from training.errors import OutOfMemory
from training.loop import build_engine, train

TORCH_TEXT = (
    "CUDA out of memory. Tried to allocate 14.70 GiB. GPU 0 has a total capacity of 79.11 GiB."
)


def half_after(*, micro_batch_tokens: int | None, **fields: Any) -> int | None:
    """Return the limit of a micro-batch with which a training tries again."""
    config = config_of(gpus_per_worker=1, **fields)
    with (
        pytest.raises(OutOfMemory) as raised,
        out_of_memory_reported(config, micro_batch_tokens=micro_batch_tokens),
    ):
        raise torch.OutOfMemoryError(TORCH_TEXT)
    return raised.value.batch_tokens


def test_the_message_has_the_cause_and_settings_that_need_less_memory() -> None:
    with pytest.raises(OutOfMemory) as raised, out_of_memory_reported(config_of(gpus_per_worker=1)):
        raise torch.OutOfMemoryError(TORCH_TEXT)
    text = str(raised.value)
    assert text.startswith(
        "CUDA out of memory. Tried to allocate 14.70 GiB; set several of training.gradient_check"
    )
    assert "79.11" not in text
    assert raised.value.num_workers == 1


def test_half_of_the_tokens_are_tried_unless_a_row_exceeds_the_limit() -> None:
    assert half_after(micro_batch_tokens=1000) == 500
    assert half_after(micro_batch_tokens=500, batch_tokens=500) == 250
    assert (
        half_after(micro_batch_tokens=300, batch_tokens=250) is None
    )  # one row, which is never split
    assert half_after(micro_batch_tokens=None) is None  # for example at the start of the engine


def test_a_step_reports_the_size_of_its_micro_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def refuse(_: object, __: object, ___: object, batch: Batch) -> None:
        sizes.append(batch.num_tokens)
        raise torch.OutOfMemoryError(TORCH_TEXT)

    monkeypatch.setattr(ClassifierRuntime, "loss", refuse)
    runtime, config = small_runtime(dropout=0.0), config_of(batch_size=8)
    with pytest.raises(OutOfMemory) as raised:
        train(build_engine(config, runtime), config, runtime=runtime)
    assert raised.value.batch_tokens == sizes[0] // 2


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(ZeroDivisionError), out_of_memory_reported(config_of()):
        raise ZeroDivisionError
