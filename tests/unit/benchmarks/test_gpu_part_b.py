"""The bounds of part b of the acceptance test on a GPU, with reported events instead of measured
ones."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.gpu import part_b
from benchmarks.gpu.local_ray import ROOT
from benchmarks.gpu.report import Failed, Report
from benchmarks.gpu.throughput import cases
from benchmarks.gpu.worker_log import WorkerLog
from cluster.progress import EpochEvent, TrialEvent

UNTIL_RAY_STARTS = """
import sys
from benchmarks.gpu import part_b
from benchmarks.gpu.report import Report

def in_child(function, *arguments, environment=None):
    if function is part_b.worker_environment:
        return start(function, *arguments)
    assert environment["OMP_NUM_THREADS"] == "1"
    return "file:///base", part_b.InProcess(1.0, (1.0,))

def local_ray(_):
    print("ray" in sys.modules)
    sys.exit()

start, part_b.in_child, part_b.local_ray = part_b.in_child, in_child, local_ray
part_b.run(Report("b", reduced=True), ())
"""
"""Run part b until it starts Ray, without its training."""
CASE = cases(reduced=True)[-1]
LOSSES = (1.4, 1.3, 1.2, 1.1)


def run_finetune(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    *,
    epochs: tuple[int, ...] = (0, 1, 1, 2, 3),
    loss_factor: float = 1.0,
    rate_factor: float = 0.96,
    kills: bool = True,
) -> Report:
    """Return the report of a training whose worker sends an event for each of these epochs."""

    def finetune(*_: Any, events: WorkerLog, **__: Any) -> None:
        if kills:
            events._mark.touch()
        for epoch in epochs:
            loss = LOSSES[epoch] * (loss_factor if epoch == epochs[-1] else 1.0)
            events.remote(EpochEvent(epoch, 0.5, loss, 100.0 * rate_factor))

    monkeypatch.setattr("training.trainer.finetune", finetune)
    report = Report("b", reduced=False)
    in_process = part_b.InProcess(100.0 * CASE.num_tokens, LOSSES)
    monkeypatch.setattr(part_b, "_task", lambda *_, **__: None)
    part_b._finetune(report, CASE, base_model="", folder=folder, in_process=in_process)
    return report


def test_a_resumed_training_with_equal_losses_and_rate_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    report = run_finetune(monkeypatch, tmp_path)
    assert report.bounds.keys() == {"loss_difference_after_a_kill", "finetune_to_in_process"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_factor": 1.002}, "loss_difference_after_a_kill is 0.002"),
        ({"rate_factor": 0.94}, "finetune_to_in_process is 0.94"),
        ({"epochs": (0, 1, 0, 1, 2, 3)}, "started again"),
        ({"kills": False}, "was not killed"),
    ],
)
def test_a_training_that_is_slower_or_differs_after_the_kill_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(Failed, match=message):
        run_finetune(monkeypatch, tmp_path, **options)


@pytest.mark.parametrize(
    ("mib", "status", "message"),
    [
        ((10, 20, 30, 74), "completed", None),
        ((10, 20, 30, 75), "completed", "memory_difference_after_trials_mib is 65"),
        ((10, 20, 30), "completed", "trials is 3"),
        ((10, 20, 30, 40), "failed", "a trial was not completed: failed"),
    ],
)
def test_memory_that_grows_over_trials_or_a_missing_trial_fails(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    mib: tuple[int, ...],
    status: str,
    message: str | None,
) -> None:
    def sweep(*_: Any, events: WorkerLog, **__: Any) -> Any:
        for number, allocated in enumerate(mib):
            monkeypatch.setattr(
                "benchmarks.gpu.worker_log.allocated_bytes",
                lambda allocated=allocated: allocated << 20,
            )
            events.remote(TrialEvent(str(number), {}, "training"))
            events.remote(TrialEvent(str(number), {}, "completed"))
        return SimpleNamespace(rows=[SimpleNamespace(status=status)])

    monkeypatch.setattr("tuning.sweep.sweep", sweep)
    monkeypatch.setattr(part_b, "_task", lambda *_, **__: None)
    report = Report("b", reduced=False)
    if message is None:
        part_b._trials(report, CASE, base_model="", folder=tmp_path)
        assert report.bounds.keys() == {"trials", "memory_difference_after_trials_mib"}
    else:
        with pytest.raises(Failed, match=message):
            part_b._trials(report, CASE, base_model="", folder=tmp_path)


def test_ray_is_not_imported_before_its_settings_are_made() -> None:
    done = subprocess.run(
        [sys.executable, "-c", UNTIL_RAY_STARTS],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout.splitlines()[-1] == "False"
