"""Two ranks over gloo: the error of the rank that fails first is the one that a user sees."""

import os
import time
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from cluster.ranks.process_group import Group, current_group, wait_for_ranks
from cluster.ranks.remote_ranks import _run_rank
from tailorbird.models.generation import answer_prompts
from tailorbird.models.loading import load_pretrained_chat
from tests import small_chat

pytestmark = pytest.mark.long


def fail(*_: Any) -> NoReturn:
    raise ValueError("of the second rank")


def wait(_: Path) -> None:
    """Wait for the other rank, which fails after both have joined instead of waiting again."""
    wait_for_ranks()
    if current_group().rank == 1:
        fail()
    wait_for_ranks()


def answer_before(base: Path) -> None:
    """Answer a prompt, and fail before the first forward pass, in which the other rank waits
    forever."""
    answer(base, "register_forward_pre_hook")


def answer_after(base: Path) -> None:
    """Answer a prompt, and fail after the first forward pass, which stops the other rank before its
    error is raised."""
    answer(base, "register_forward_hook")


def answer(base: Path, register: str) -> None:
    lm = load_pretrained_chat(base).lm
    if current_group().rank == 1:
        getattr(lm, register)(fail)
    try:
        answer_prompts(lm, [[3, 9]], max_new_tokens=2, end_id=1)
    finally:
        time.sleep(3 * current_group().rank)


def run_rank(rank: int, folder: Path, function: Any) -> None:
    """Write the error of a rank, and end its process, as Ray does."""
    torch.set_num_threads(1)
    try:
        _run_rank(function, Group(rank, 2), str(folder / "store"), ((folder / "base",), {}))
    except Exception as error:
        (folder / f"rank-{rank}").write_text(f"{type(error).__name__}: {error}")
    os._exit(0)  # its other threads can wait forever


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (wait, "ValueError: of the second rank"),
        (answer_before, "RuntimeError: the model did not answer prompt 0: of the second rank"),
        (answer_after, "RuntimeError: the model did not answer prompt 0: of the second rank"),
    ],
)
def test_only_the_rank_that_fails_first_raises_its_error(
    tmp_path: Path, function: Any, expected: str
) -> None:
    small_chat.save(tmp_path / "base")
    spawn(run_rank, (tmp_path, function), nprocs=2)  # type: ignore[no-untyped-call]
    first, second = ((tmp_path / f"rank-{rank}").read_text() for rank in (0, 1))
    assert second == expected
    assert first.startswith("OtherRankFailed: another rank failed")
