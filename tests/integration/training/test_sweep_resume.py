"""A driver that ended during its sweep is started again: it keeps finished trials and resumes the
others."""

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from cluster.connection import connect
from cluster.progress import EpochEvent
from tailorbird import storage
from tailorbird.config.loader import load_recipe
from tailorbird.pipeline import run
from tailorbird.storage import s3
from tests.integration.small import REGISTRY, recipe_file, start_run, written
from tests.progress import ProgressRecorder
from tuning.trial_record import SweepJournal, TrialRecord

OVERRIDES = (
    "data.max_train_rows=128",
    "tuning.num_trials=3",
    "tuning.grace_epochs=4",
    "training.epochs=4",
    # Two steps an epoch, with a checkpoint after each. A checkpoint is uploaded before the next one
    # is written, so that the checkpoint of the first epoch is in the journal before the last step
    # of a trial that ends after two epochs.
    "training.batch_size=64",
    "training.checkpoint_interval_s=0",
    "evaluation.minimum_gain=0",
    "evaluation.expected_gain=0.01",
)
WAIT_S = 300


def trials_when(
    process: subprocess.Popen[str], *, task_uri: str, log: Path
) -> tuple[str, tuple[TrialRecord, ...]]:
    """Return the sweep's folder and the journal's trials, once one is finished and another is in
    its second epoch."""
    ticks = threading.Event()
    for _ in range(4 * WAIT_S):
        for path in written(task_uri, mark="/journal.json"):
            try:
                trials = SweepJournal.model_validate(storage.read_json(f"s3://{path}")).trials
            except s3.StorageError:  # read while the sweep wrote it
                continue
            if any(trial.result for trial in trials) and any(
                in_second_epoch(trial) for trial in trials
            ):
                return f"s3://{path.rpartition('/')[0]}", trials
        assert process.poll() is None, log.read_text()
        ticks.wait(0.25)
    raise AssertionError(log.read_text())


def in_second_epoch(trial: TrialRecord) -> bool:
    """Return True if an unfinished trial has a checkpoint, `.../<epoch>-<step>-...`, from after its
    first epoch."""
    name = (trial.checkpoint or "").rpartition("/")[2]
    return not trial.result and bool(name) and not name.startswith("0-")


@pytest.mark.parametrize(
    "end",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.long),
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
    ],
)
def test_a_restarted_driver_keeps_finished_trials_and_resumes_the_others(
    small_data: str, tmp_path: Path, end: signal.Signals
) -> None:
    name = f"swept-by-{end.name.lower()}"
    task_uri = f"{REGISTRY}/{name}"
    path = recipe_file(tmp_path, name=name, data=small_data)
    process = start_run(path, *OVERRIDES, verb="sweep")
    uri, before = trials_when(process, task_uri=task_uri, log=path.with_suffix(".log"))
    process.send_signal(end)
    assert process.wait(timeout=60) != 0
    recorder = ProgressRecorder()
    with connect():
        swept = run.sweep_only(load_recipe(path, overrides=OVERRIDES), progress=recorder)
    trials = {row.trial: row for row in swept.rows if row.status != "baseline"}
    assert len(trials) == 3
    assert {trial.trial for trial in before} < set(trials)
    assert len({row.config["learning_rate"] for row in trials.values()}) == 3
    trained = {(event.trial, event.epoch) for event in recorder.of_kind(EpochEvent)}
    for trial in before:
        if trial.result:
            assert trials[trial.trial].scores == trial.scores
            assert not {(trial.trial, number) for number in range(4)} & trained
        elif in_second_epoch(trial):
            assert len(trials[trial.trial].scores) >= 2  # then the target may have stopped it
            assert (trial.trial, 0) not in trained
    assert storage.exists(f"{swept.trained.weights}/head.safetensors")
    assert not [file for file in storage.list_files(uri) if "/checkpoints/" in file]
