"""The memory section of the acceptance test on a GPU fails unless it has measured a step with
moments."""

import math
from pathlib import Path

import pytest

from benchmarks.gpu.part_a import memory_in_child
from benchmarks.gpu.report import Failed, in_child

pytestmark = pytest.mark.long


def measure_with_nan(folder: Path) -> None:
    """Measure a training whose loss is NaN."""
    from training.chat_task import ChatRuntime

    loss = ChatRuntime.loss
    ChatRuntime.loss = lambda *arguments: loss(*arguments) * math.nan  # type: ignore[method-assign]
    list(memory_in_child(folder, 8, reduced=True))


def test_a_training_that_diverges_before_the_second_step_fails(tmp_path: Path) -> None:
    with pytest.raises(
        Failed, match=r"moments was not measured: 1 of 2 steps ran, and the optimizer skipped 1$"
    ):
        in_child(measure_with_nan, tmp_path)
