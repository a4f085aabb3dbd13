"""Several ranks over gloo: the export of every stage and method, and resumes with another number of
ranks."""

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any
from unittest import mock

import deepspeed
import pytest
import torch
import torch.distributed as dist

from tailorbird.models.errors import ModelError
from tests.unit.training.engine.reads import bytes_read
from tests.unit.training.ranks import on_ranks
from tests.unit.training.small import config_of, exact, small_runtime
from training import checkpoint, loop, reports
from training.engine.deepspeed_private import destroy_engine, full_shapes

pytestmark = pytest.mark.long

CHECKPOINT_AT = (0, 2)
METHODS = ("full", "lora")
PAIRS = {"zero_hpz_partition_size": 2}  # as on nodes of two GPUs
Case = tuple[int, str]
"""ZeRO stage and method."""
RESIZED: list[Case] = [(stage, method) for stage in (1, 3) for method in METHODS]
RESIZED_TO_3: list[Case] = [(2, "full"), (3, "lora")]
RESIZED_TO_4: list[Case] = [(1, "lora"), (3, "full")]
RESIZED_FROM_3: list[Case] = [(2, "lora"), (3, "full")]
RESIZED_FOLDERS = [
    ("2", RESIZED),
    ("1", RESIZED),
    ("3", RESIZED_TO_3),
    ("4", RESIZED_TO_4),
    ("4-in-pairs", [(3, "full")]),
    ("from-3", RESIZED_FROM_3),
]
"""Folders of resumed trainings in the folder of `trained`."""
WHOLE: Case = (0, "full")
"""Each rank has all values, and rank 0 has saved them."""
SAME: list[Case] = [WHOLE, (1, "full"), (3, "lora")]
"""Cases that are resumed with as many ranks as before."""


Job = tuple[Callable[[Path, int, str], None], list[Case], str]
"""A function, the cases that it is called for, and the name of the folder with their folders."""


def run_jobs(folder: Path, *jobs: Job) -> None:
    """Run the jobs in the same processes, because starting processes takes longer than training."""
    for function, cases, name in jobs:
        for stage, method in cases:
            own = folder / name / f"{stage}-{method}"
            own.mkdir(parents=True, exist_ok=True)
            function(own, stage, method)
            dist.barrier()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train with one, two and three workers, and resume each training with other numbers.

    Return the folder with `1` (resumed with two), `2` (with one), `3` (with three instead of two),
    `4` and `4-in-pairs` (with four instead of one), and `from-3` (with two instead of three).
    """
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(1, run_jobs, folder, (start_training, RESIZED, "1"))
    merge_checkpoints(folder / "1", num_ranks=1)
    for name in ("4", "4-in-pairs"):
        shutil.copytree(folder / "1", folder / name)
    on_ranks(3, run_jobs, folder, (start_training, RESIZED_FROM_3, "from-3"))
    merge_checkpoints(folder / "from-3", num_ranks=3)
    on_ranks(
        2,
        run_jobs,
        folder,
        (resume_training, RESIZED, "1"),
        (resume_training, RESIZED_FROM_3, "from-3"),
        (start_training, [*RESIZED, WHOLE, (2, "full")], "2"),
        (resume_with_as_many_ranks, SAME, "2"),
        (raise_on_rank_1, [WHOLE], "raised"),
        (write_timeouts, [(3, "full")], "timeouts"),
    )
    merge_checkpoints(folder / "2", num_ranks=2)
    on_ranks(1, run_jobs, folder, (resume_training, [WHOLE, *RESIZED], "2"))
    shutil.copytree(folder / "2", folder / "3")
    on_ranks(3, run_jobs, folder, (resume_training, RESIZED_TO_3, "3"))
    in_pairs = (resume_in_pairs, [(3, "full")], "4-in-pairs")  # DeepSpeed keeps the groups
    on_ranks(4, run_jobs, folder, (resume_training, RESIZED_TO_4, "4"), in_pairs)
    return folder


def merge_checkpoints(folder: Path, *, num_ranks: int) -> None:
    """Merge the folders of all ranks, as Ray Train does."""
    for own in folder.glob("[0-3]-*"):
        for rank in range(num_ranks):
            shutil.copytree(own / f"rank-{rank}", own / "merged", dirs_exist_ok=True)


def start_training(folder: Path, stage: int, method: str) -> None:
    """Train two epochs, and checkpoint after two steps."""
    train(folder, stage, method, resume_from=None)


def resume_training(folder: Path, stage: int, method: str) -> None:
    """Resume the training of `start_training` from its checkpoint."""
    train(folder, stage, method, resume_from="merged")


def resume_in_pairs(folder: Path, stage: int, method: str) -> None:
    """Resume with workers of which each two hold a second copy of the parameters, as on nodes of
    two GPUs."""
    train(folder, stage, method, resume_from="merged", zero_optimization=PAIRS)
    pair = deepspeed.utils.groups._get_zero_param_intra_parallel_group()
    assert (dist.get_world_size(), dist.get_world_size(pair)) == (4, 2)


def resume_with_as_many_ranks(folder: Path, stage: int, method: str) -> None:
    """Resume with as many ranks as before, so that each rank reads what it has written."""
    if dist.get_rank() == 0:
        for rank in range(dist.get_world_size()):
            shutil.copytree(folder / f"rank-{rank}", folder / "same", dirs_exist_ok=True)
    dist.barrier()
    train(folder, stage, method, resume_from="same")


def raise_on_rank_1(folder: Path, stage: int, method: str) -> None:  # noqa: ARG001  part of the interface
    """Build an engine whose kernels are missing on rank 1, and write the error of each rank."""
    error = ModelError("no kernels") if dist.get_rank() == 1 else None
    with mock.patch("training.engine.deepspeed_engine.use_kernels", side_effect=error):
        try:
            loop.build_engine(config_of(num_workers=2), small_runtime(dropout=0.0))
        except ModelError as raised:
            (folder / f"rank-{dist.get_rank()}.txt").write_text(str(raised))


def train(
    folder: Path,
    stage: int,
    method: str,
    *,
    resume_from: str | None,
    zero_optimization: dict[str, Any] | None = None,
) -> None:
    """Train two epochs; rank 0 writes the last report."""
    runtime = small_runtime(dropout=0.0)
    config = config_of(
        num_workers=(1, 4),
        batch_size=7,  # not a multiple of the workers; fewer than four accumulate micro-batches
        zero_stage=stage,
        method=method,
        lora_dropout=0.0,
        epochs=2,
        checkpoint_interval_s=0,
    ).model_copy(update={"deepspeed": {"zero_optimization": zero_optimization or {}}})

    def save(progress: reports.Progress, engine: Any) -> None:
        if resume_from is None and (progress.epoch, progress.step) == CHECKPOINT_AT:
            own = folder / f"rank-{dist.get_rank()}"
            own.mkdir()
            checkpoint.save(engine, folder=own, progress=progress)

    with (
        mock.patch("training.engine.resharding.BUFFER", 4),  # else whole files would be read
        # The rounding of bf16 depends on the shape of the batch, and so on the number of ranks.
        mock.patch("training.loop.inference_dtype", return_value=torch.float32),
        bytes_read() as reads,
    ):
        if resume_from is not None:
            engine, progress = checkpoint.resume(
                config, runtime, uri=(folder / resume_from).as_uri()
            )
        else:
            engine, progress = loop.build_engine(config, runtime), reports.Progress()
    if resume_from == "merged":
        shapes = full_shapes(engine.module)
        trained = sum(
            prod(shapes[name])
            for name, parameter in engine.module.named_parameters()
            if parameter.requires_grad
        )
        figures = {"bytes": sum(reads), "trained": trained, "ranks": dist.get_world_size()}
        (folder / f"reads-{dist.get_rank()}.json").write_text(json.dumps(figures))
    last = loop.train(
        engine,
        config,
        runtime=runtime,
        callbacks=loop.Callbacks(on_save=save),
        progress=progress,
    )
    if dist.get_rank() == 0:
        (folder / f"report-{resume_from}.json").write_text(json.dumps(exact(last)))
    destroy_engine(engine)


@pytest.mark.parametrize(("name", "cases"), RESIZED_FOLDERS)
def test_the_ranks_read_each_value_of_a_checkpoint_once(
    trained: Path, name: str, cases: list[Case]
) -> None:
    for stage, method in cases:
        files = (trained / name / f"{stage}-{method}").glob("reads-*.json")
        figures = [json.loads(file.read_text()) for file in files]
        num_bytes = [figure["bytes"] for figure in figures]
        assert len(figures) == figures[0]["ranks"]
        assert sum(num_bytes) == 3 * 4 * figures[0]["trained"]  # weights and two moments
        assert max(num_bytes) < 1.1 * sum(num_bytes) / len(figures)


@pytest.mark.parametrize(("name", "cases"), RESIZED_FOLDERS)
def test_deepspeed_3810_a_training_resumes_with_another_number_of_workers(
    trained: Path, name: str, cases: list[Case]
) -> None:
    if name == "2":
        cases = [WHOLE, *cases]
    for case in cases:
        uninterrupted = report(trained, name, case, resume_from=None)
        resumed = report(trained, name, case, resume_from="merged")
        assert resumed[0] == pytest.approx(uninterrupted[0], rel=1e-5), case
        assert resumed[1] == uninterrupted[1], case


def report(trained: Path, name: str, case: Case, *, resume_from: str | None) -> list[float]:
    file = trained / name / f"{case[0]}-{case[1]}" / f"report-{resume_from}.json"
    return list(json.loads(file.read_text()))


@pytest.mark.parametrize("case", SAME)
def test_a_training_resumes_exactly_with_as_many_workers(trained: Path, case: Case) -> None:
    resumed = report(trained, "2", case, resume_from="same")
    assert resumed == report(trained, "2", case, resume_from=None)


def write_timeouts(folder: Path, stage: int, method: str) -> None:
    """Build an engine, and write the time-out in seconds of each of DeepSpeed's groups."""
    options = {"zero_optimization": PAIRS}
    config = config_of(num_workers=2, zero_stage=stage, method=method, deepspeed=options)
    engine = loop.build_engine(config, small_runtime(dropout=0.0))
    groups = deepspeed.utils.groups
    created = (groups._get_data_parallel_group(), groups._get_zero_param_intra_parallel_group())
    backends = [group._get_backend(torch.device("cpu")) for group in created]
    timeouts = [backend.options._timeout.total_seconds() for backend in backends]
    (folder / f"rank-{dist.get_rank()}.json").write_text(json.dumps(timeouts))
    destroy_engine(engine)


def test_the_groups_that_deepspeed_creates_have_the_time_out_of_the_recipe(trained: Path) -> None:
    files = list((trained / "timeouts" / "3-full").iterdir())
    assert [json.loads(file.read_text()) for file in files] == [[7200, 7200]] * 2


def test_an_error_of_one_worker_is_raised_by_all_instead_of_a_time_out(trained: Path) -> None:
    files = sorted((trained / "raised" / "0-full").iterdir())
    assert [file.read_text() for file in files] == ["no kernels", "no kernels"]
