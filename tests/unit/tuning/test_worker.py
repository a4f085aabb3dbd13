"""The workers of a group wait for the broker longer than their process group waits for a rank."""

import threading
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tuning import worker

GROUP_TIMEOUT_S, POLL_S, ANSWER_AFTER_S = 5, 0.5, 12


def wait_for_the_broker(rank: int, folder: Path) -> None:
    timeout = timedelta(seconds=GROUP_TIMEOUT_S)
    dist.init_process_group(
        "gloo", init_method=(folder / "store").as_uri(), rank=rank, world_size=2, timeout=timeout
    )
    worker.POLL_S = POLL_S
    pending: Future[Any] = Future()
    threading.Timer(ANSWER_AFTER_S, pending.set_result, ["trial-1"]).start()
    answer = worker.answer(lambda: pending)
    (folder / str(rank)).write_text(answer)
    dist.destroy_process_group()


@pytest.mark.long
def test_a_late_answer_of_the_broker_does_not_end_the_waiting_ranks(tmp_path: Path) -> None:
    spawn(wait_for_the_broker, (tmp_path,), nprocs=2)  # type: ignore[no-untyped-call]
    assert [(tmp_path / str(rank)).read_text() for rank in range(2)] == ["trial-1", "trial-1"]
