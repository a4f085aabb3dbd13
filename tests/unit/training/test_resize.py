"""Training on with another number of workers: the losses are those of a training whose number never changed."""

import json
import os
import shutil
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from tests.unit.training.small import section_of, small_material
from training import checkpoint, loop

KEPT = (0, 2)


def one_rank(rank: int, num_ranks: int, folder: Path, stage: int, method: str, resumed: bool) -> None:
    """A training of one epoch from its start, kept after two steps, or from there; rank 0 writes the last report."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(1)
    store = folder / f"store-{resumed}"
    dist.init_process_group("gloo", init_method=store.as_uri(), rank=rank, world_size=num_ranks)
    material = small_material(dropout=0.0)
    section = section_of(
        num_workers=num_ranks, zero_stage=stage, method=method, lora_dropout=0.0, epochs=2, checkpoint_interval_s=0
    )

    def save(progress: loop.Progress, engine: Any) -> None:
        if not resumed and (progress.epoch, progress.step) == KEPT:
            own = folder / f"rank-{rank}"
            own.mkdir()
            checkpoint.save(engine, section, folder=own, progress=progress)

    with mock.patch("training.loop.inference_dtype", return_value=torch.float32):  # bf16 rounds by a matrix's shape
        if resumed:
            engine, progress = checkpoint.resume(section, material, folder=folder / "merged")
        else:
            engine, progress = loop.new_engine(section, material), loop.Progress()
    last = loop.train(
        engine,
        section,
        material=material,
        on_step=lambda _: None,
        on_epoch=lambda *_: True,
        on_save=save,
        progress=progress,
    )
    if rank == 0:
        (folder / f"report-{resumed}.json").write_text(json.dumps([last.loss, last.score, last.padding_share]))
    dist.barrier()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_deepspeed_3810_a_training_goes_on_with_another_number_of_workers(
    tmp_path: Path, before: int, after: int, stage: int, method: str
) -> None:
    spawn(one_rank, (before, tmp_path, stage, method, False), nprocs=before)  # type: ignore[no-untyped-call]
    for rank in range(before):  # as Ray Train merges what the ranks report
        shutil.copytree(tmp_path / f"rank-{rank}", tmp_path / "merged", dirs_exist_ok=True)
    spawn(one_rank, (after, tmp_path, stage, method, True), nprocs=after)  # type: ignore[no-untyped-call]
    undisturbed, resumed = (json.loads((tmp_path / f"report-{number}.json").read_text()) for number in (False, True))
    assert resumed[0] == pytest.approx(undisturbed[0], rel=1e-5)
    assert resumed[1] == undisturbed[1]
