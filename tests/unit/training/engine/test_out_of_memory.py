"""The advice after a GPU has run out of memory."""

import pytest
import torch

from tests.unit.training.small import config_of, small_runtime
from tests.unit.training.test_chat_task import runtime_of
from training.engine.out_of_memory import out_of_memory_reported
from training.errors import OutOfMemory
from training.task import TaskRuntime

TORCH_TEXT = "CUDA out of memory. Tried to allocate 14.70 GiB. GPU 0 has a total capacity of 79.11 GiB."


@pytest.mark.parametrize("runtime", [runtime_of(), small_runtime(dropout=0.0)], ids=["chat", "classification"])
def test_the_advice_names_changes_of_the_recipe_that_need_less_memory(runtime: TaskRuntime) -> None:
    config = config_of(gpus_per_worker=1, batch_size=64)
    with pytest.raises(OutOfMemory) as raised, out_of_memory_reported(config, runtime):
        raise torch.OutOfMemoryError(TORCH_TEXT)
    text = str(raised.value)
    assert text.startswith("CUDA out of memory. Tried to allocate 14.70 GiB; set training.gradient_checkpointing: true")
    assert "training.gradient_accumulation_steps: 64" in text
    assert "79.11" not in text
    assert raised.value.num_workers == 1


def test_other_errors_are_not_changed() -> None:
    with pytest.raises(ZeroDivisionError), out_of_memory_reported(config_of(), runtime_of()):
        raise ZeroDivisionError
