"""The check of the acceptance test on a GPU that a training resumes with the optimizer's state."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.part_a import RESUME_TOLERANCE
from benchmarks.gpu.report import in_child

pytestmark = pytest.mark.long

NUMBERS = (0, 8)
"""Of combinations at stages 0 and 3, one for each task."""
LOST: dict[str, tuple[str, ...]] = {
    "nothing": (),
    "moments": ("exp_avg", "exp_avg_sq"),
    "step": ("step",),
}
"""Names of AdamW's states of a parameter that are set to zero after a resume."""


@pytest.fixture(scope="module")
def differences(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[float]]:
    """The differences after a resume of each combination, by what is lost."""
    return in_child(measure, tmp_path_factory.mktemp("combinations"))


def measure(folder: Path) -> dict[str, list[float]]:
    from benchmarks.gpu import combinations
    from benchmarks.gpu.models import (
        BERT_TINY,
        LLAMA_TINY,
        process_group,
        saved_model,
        training_task,
    )
    from training import checkpoint
    from training.engine.deepspeed_private import inner_optimizer

    resume = checkpoint.resume
    lost: tuple[str, ...] = ()
    results: dict[str, list[float]] = {what: [] for what in LOST}

    def resume_with_loss(*arguments: Any, **options: Any) -> Any:
        engine, progress = resume(*arguments, **options)
        for state in inner_optimizer(engine).state.values():
            for name in lost:
                state[name].zero_()
        return engine, progress

    checkpoint.resume = resume_with_loss  # this process runs nothing else
    with process_group():
        for number in NUMBERS:
            combination = combinations.COMBINATIONS[number]
            base = saved_model(
                folder, combination.task, LLAMA_TINY if combination.task == "chat" else BERT_TINY
            )
            rows = combinations.NUM_STEPS * combinations.BATCH_SIZE
            task = training_task(
                base, combination.task, num_rows=rows, num_tokens=combinations.NUM_TOKENS
            )
            for what, lost in LOST.items():  # noqa: B007 (used by the closure)
                own = folder / f"{number}-{what}"
                own.mkdir()
                results[what].append(
                    combinations.difference_after_resume(
                        combination, task.load_runtime(), folder=own, gpu=False
                    )
                )
    return results


def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one(
    differences: dict[str, list[float]],
) -> None:
    assert max(differences["nothing"]) <= RESUME_TOLERANCE / 10


@pytest.mark.parametrize("lost", ["moments", "step"])
def test_lost_optimizer_state_is_far_out_of_the_bound(
    differences: dict[str, list[float]], lost: str
) -> None:
    assert min(differences[lost]) > 10 * RESUME_TOLERANCE
