"""Part b: training through Ray with storage on `file://`: rate, a killed worker, and the memory of trials."""

import tempfile
from pathlib import Path

from benchmarks.gpu.local_ray import local_ray
from benchmarks.gpu.models import process_group, saved_model, training_task
from benchmarks.gpu.report import Failed, Report, in_child
from benchmarks.gpu.throughput import Case, cases, measure_ours
from benchmarks.gpu.worker_log import WorkerLog
from cluster.connection import connect
from cluster.progress import EpochEvent, TrialEvent
from tailorbird.config.tuning import TuningConfig
from training.classification_task import ClassificationTrainingTask
from tuning.futility import Target

NUM_TRIALS = 4
MAX_GROWTH_MIB = 64
RESUME_TOLERANCE = 1e-3
"""Relative difference of a loss. On a GPU, atomic additions have no fixed order."""


def run(report: Report, _sections: tuple[str, ...]) -> None:
    """Measure the last case of part a, an encoder, through Ray Train and Ray Tune. Raises Failed."""
    case = cases(report.reduced)[-1]
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as temporary:
        folder = Path(temporary)
        base_model, in_process = in_child(measure_in_process, case, folder)
        report.add("in_process_tokens_per_second", in_process)
        with local_ray(folder), connect():
            _finetune(report, case, base_model=base_model, folder=folder, in_process=in_process)
            _trials(report, case, base_model=base_model, folder=folder)


def measure_in_process(case: Case, folder: Path) -> tuple[str, float]:
    """Save the base model; return its URI, and the tokens per second of the case without Ray."""
    base_model = saved_model(folder, case.task, case.size)
    with process_group():
        return base_model, measure_ours(case, _task(case, base_model))["tokens_per_second"]


def _task(case: Case, base_model: str, *, num_steps: int | None = None) -> ClassificationTrainingTask:
    num_rows = (num_steps or case.num_steps) * case.config.batch_size
    task = training_task(base_model, case.task, num_rows=num_rows, num_tokens=case.num_tokens, num_validation=64)
    assert isinstance(task, ClassificationTrainingTask)
    return task


def _finetune(report: Report, case: Case, *, base_model: str, folder: Path, in_process: float) -> None:
    """Train two epochs, and again with a worker that is killed in the second one."""
    from training.trainer import finetune

    config = case.config.model_copy(update={"epochs": 2})
    ends = []
    for name, kill_in_epoch in (("whole", None), ("killed", 1)):
        log = WorkerLog(folder / f"{name}.jsonl", kill_in_epoch=kill_in_epoch)
        finetune(config, task=_task(case, base_model), uri=(folder / name).as_uri(), events=log)
        if log.killed is not (kill_in_epoch is not None):
            raise Failed("the worker was not killed in its second epoch")
        ends.append({event["epoch"]: event for event in log.lines(EpochEvent)})
    whole, killed = ends
    difference = max(abs(killed[epoch]["loss"] / whole[epoch]["loss"] - 1) for epoch in range(config.epochs))
    report.add("loss_difference_after_a_kill", difference, f"<= {RESUME_TOLERANCE}")
    rate = whole[1]["rows_per_second"] * case.num_tokens
    report.add("finetune_tokens_per_second", rate)
    report.add("finetune_to_in_process", rate / in_process, ">= 0.95", hardware=True)


def _trials(report: Report, case: Case, *, base_model: str, folder: Path) -> None:
    """Run a sweep in one worker group, and compare the memory of its worker after each trial."""
    from tuning.sweep import sweep

    space = {"learning_rate": {"log_uniform": [1e-5, 1e-4]}}
    tuning = TuningConfig.model_validate(
        {"num_trials": NUM_TRIALS, "max_concurrent_trials": 1, "search": "random", "space": space}
    )
    log = WorkerLog(folder / "trials.jsonl")
    result = sweep(
        tuning,
        training=case.config,
        task=_task(case, base_model, num_steps=10),
        target=Target({}, 0.0, "0"),
        uri=(folder / "sweep").as_uri(),
        events=log,
    )
    ended = [event["allocated"] for event in log.lines(TrialEvent) if event["status"] != "training"]
    report.add("trials", len(ended), f">= {NUM_TRIALS}")
    if any(row.status != "completed" for row in result.rows):
        raise Failed(f"a trial was not completed: {', '.join(row.status for row in result.rows)}")
    growth = (max(ended) - min(ended)) / 2**20
    report.add("memory_difference_after_trials_mib", growth, f"<= {MAX_GROWTH_MIB}", hardware=True)
