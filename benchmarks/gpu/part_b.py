"""Part b: training through Ray with storage on `file://`: rate, a killed worker, and the memory of
trials."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu.local_ray import local_ray, require_gpus
from benchmarks.gpu.models import process_group, saved_model, training_task
from benchmarks.gpu.part_a import RESUME_TOLERANCE, worker_environment
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

EPOCHS, KILLED_IN = 4, 2
"""Epochs of the training, and the one in which its worker is killed. The checkpoint of the first
epoch is stored then, because its upload ends before the next one is written; the last epoch is
trained without the start of a process."""
NUM_TRIALS = 4
BOUNDS = {
    "loss_difference_after_a_kill": f"<= {RESUME_TOLERANCE}",
    "finetune_to_in_process": ">= 0.95",
    "trials": f">= {NUM_TRIALS}",
    "memory_difference_after_trials_mib": "<= 64",
}


def run(report: Report, _sections: tuple[str, ...]) -> None:
    """Measure the last case of part a, an encoder, through Ray Train and Ray Tune. Raises
    Failed."""
    case = cases(report.reduced)[-1]
    with tempfile.TemporaryDirectory(prefix="tailorbird-gpu-") as temporary:
        folder = Path(temporary)
        # In a process of its own, because Ray reads its settings, which `local_ray` makes, when it
        # is imported.
        environment = in_child(worker_environment, report.reduced)
        base_model, in_process = in_child(train_in_process, case, folder, environment=environment)
        report.add("in_process_tokens_per_second", in_process.tokens_per_second)
        with local_ray(folder), connect():
            require_gpus(case.config.gpus_per_worker)
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
        config, runtime = _several_epochs(case), task.load_runtime()
        rate = measure_ours(case, runtime)["tokens_per_second"]
        train(
            build_engine(config, runtime),
            config,
            runtime=runtime,
            callbacks=Callbacks(on_epoch=on_epoch),
        )
    return base_model, InProcess(rate, tuple(losses))


def _several_epochs(case: Case) -> TrainingConfig:
    return case.config.model_copy(update={"epochs": EPOCHS})


def _task(
    case: Case, base_model: str, *, num_steps: int | None = None
) -> ClassificationTrainingTask:
    num_rows = (num_steps or case.num_steps) * case.config.batch_size
    task = training_task(
        base_model, case.task, num_rows=num_rows, num_tokens=case.num_tokens, num_validation=64
    )
    assert isinstance(task, ClassificationTrainingTask)
    return task


def _finetune(
    report: Report, case: Case, *, base_model: str, folder: Path, in_process: InProcess
) -> None:
    """Train in a worker that is killed in epoch `KILLED_IN`. The rate is that of the last epoch."""
    from training.trainer import finetune

    log = WorkerLog(folder / "killed.jsonl", kill_in_epoch=KILLED_IN)
    finetune(
        _several_epochs(case),
        task=_task(case, base_model),
        uri=(folder / "killed").as_uri(),
        events=log,
    )
    if not log.killed:
        raise Failed(f"the worker was not killed in epoch {KILLED_IN}")
    events = log.lines(EpochEvent)
    if sum(event["epoch"] == 0 for event in events) != 1:
        raise Failed("the training started again instead of resuming from a checkpoint")
    epochs = {event["epoch"]: event for event in events}
    difference = max(
        abs(epochs[epoch]["loss"] / loss - 1) for epoch, loss in enumerate(in_process.losses)
    )
    _add(report, "loss_difference_after_a_kill", difference)
    rate = epochs[EPOCHS - 1]["rows_per_second"] * case.num_tokens
    report.add("finetune_tokens_per_second", rate)
    _add(report, "finetune_to_in_process", rate / in_process.tokens_per_second, hardware=True)


def _trials(report: Report, case: Case, *, base_model: str, folder: Path) -> None:
    """Run a sweep in one worker group, and compare the memory of its worker after each trial."""
    from tuning.sweep import sweep

    space = {"learning_rate": {"log_uniform": [1e-5, 1e-4]}}
    tuning = TuningConfig.model_validate(
        {"num_trials": NUM_TRIALS, "max_concurrent_trials": 1, "space": space}
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
    _add(report, "trials", len(ended))
    if any(row.status != "completed" for row in result.rows):
        raise Failed(f"a trial was not completed: {', '.join(row.status for row in result.rows)}")
    growth = (max(ended) - min(ended)) / 2**20
    _add(report, "memory_difference_after_trials_mib", growth, hardware=True)


def _add(report: Report, name: str, value: float, *, hardware: bool = False) -> None:
    report.add(name, value, BOUNDS[name], hardware=hardware)
