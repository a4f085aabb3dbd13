"""Part b: training through Ray with storage on `file://`: rate, a killed worker, and the memory of trials."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.local_ray import local_ray
from benchmarks.gpu.models import process_group, saved_model, training_task
from benchmarks.gpu.report import Failed, Report, in_child
from benchmarks.gpu.throughput import Case, cases, measure_ours
from benchmarks.gpu.worker_log import WorkerLog
from cluster.connection import connect
from cluster.progress import EpochEvent, TrialEvent
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from training.classification_task import ClassificationTrainingTask
from training.loop import Callbacks, build_engine, train
from training.reports import EpochReport
from tuning.futility import Target

EPOCHS = 3
NUM_TRIALS = 4
MAX_GROWTH_MIB = 64
RESUME_TOLERANCE = 1e-3
"""Relative difference of a loss. On a GPU, atomic additions have no fixed order."""


def run(report: Report, _sections: tuple[str, ...]) -> None:
    """Measure the last case of part a, an encoder, through Ray Train and Ray Tune. Raises Failed."""
    case = cases(report.reduced)[-1]
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as temporary:
        folder = Path(temporary)
        base_model, in_process = in_child(train_in_process, case, folder)
        report.add("in_process_tokens_per_second", in_process.tokens_per_second)
        with local_ray(folder), connect():
            _finetune(report, case, base_model=base_model, folder=folder, in_process=in_process)
            _trials(report, case, base_model=base_model, folder=folder)


@dataclass(frozen=True)
class InProcess:
    """Figures of an uninterrupted training without Ray."""

    tokens_per_second: float
    losses: tuple[float, ...]  # of each epoch


def train_in_process(case: Case, folder: Path) -> tuple[str, InProcess]:
    """Save the base model; return its URI, and the figures of the case without Ray."""
    base_model = saved_model(folder, case.task, case.size)
    task = _task(case, base_model)
    losses: list[float] = []

    def on_epoch(report: EpochReport, _: object) -> bool:
        losses.append(report.loss)
        return True

    with process_group():
        rate = measure_ours(case, task)["tokens_per_second"]
        config, runtime = _several_epochs(case), task.load_runtime()
        train(build_engine(config, runtime), config, runtime=runtime, callbacks=Callbacks(on_epoch=on_epoch))
    return base_model, InProcess(rate, tuple(losses))


def _several_epochs(case: Case) -> TrainingConfig:
    return case.config.model_copy(update={"epochs": EPOCHS})


def _task(case: Case, base_model: str, *, num_steps: int | None = None) -> ClassificationTrainingTask:
    num_rows = (num_steps or case.num_steps) * case.config.batch_size
    task = training_task(base_model, case.task, num_rows=num_rows, num_tokens=case.num_tokens, num_validation=64)
    assert isinstance(task, ClassificationTrainingTask)
    return task


def _finetune(report: Report, case: Case, *, base_model: str, folder: Path, in_process: InProcess) -> None:
    """Train in a worker that is killed in the second epoch. The rate is that of the last epoch."""
    from training.trainer import finetune

    log = WorkerLog(folder / "killed.jsonl", kill_in_epoch=1)
    finetune(_several_epochs(case), task=_task(case, base_model), uri=(folder / "killed").as_uri(), events=log)
    if not log.killed:
        raise Failed("the worker was not killed in its second epoch")
    epochs = {event["epoch"]: event for event in log.lines(EpochEvent)}
    difference = max(abs(epochs[epoch]["loss"] / loss - 1) for epoch, loss in enumerate(in_process.losses))
    report.add("loss_difference_after_a_kill", difference, f"<= {RESUME_TOLERANCE}")
    rate = epochs[EPOCHS - 1]["rows_per_second"] * case.num_tokens
    report.add("finetune_tokens_per_second", rate)
    report.add("finetune_to_in_process", rate / in_process.tokens_per_second, ">= 0.95", hardware=True)


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
