"""A driver ended in the middle of its sweep: run again, it trains no finished trial again, and the others go on."""

import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.connection import connect
from cluster.progress import EpochEvent
from tailorbird import storage
from tailorbird.config.loader import load_recipe
from tailorbird.pipeline import run
from tailorbird.storage import s3
from tests.integration.small import REGISTRY, recipe_file, start_run, written
from tests.progress import ProgressRecorder

ASKED = (
    "data.max_train_rows=64",
    "tuning.num_trials=3",
    "tuning.grace_epochs=4",
    "training.epochs=4",
    "training.batch_size=64",  # one step an epoch, then a checkpoint
    "training.checkpoint_interval_s=0",
    "evaluation.minimum_gain=0",
    "evaluation.expected_gain=0.01",
)
WAIT_S = 300


def trials_when(process: subprocess.Popen[str], *, task_uri: str, log: Path) -> tuple[str, list[dict[str, Any]]]:
    """The sweep's folder and the journal's trials, once one is finished and another has a checkpoint."""
    ticks = threading.Event()
    for _ in range(4 * WAIT_S):
        for path in written(task_uri, mark="/journal.json"):
            try:
                trials = storage.read_json(f"s3://{path}")["trials"]
            except s3.StorageError:  # read in parts, while the sweep wrote it anew
                continue
            over = [trial for trial in trials if trial["outcome"]]
            underway = [trial for trial in trials if not trial["outcome"] and trial["checkpoint"]]
            if over and underway:
                return f"s3://{path.rpartition('/')[0]}", trials
        assert process.poll() is None, log.read_text()
        ticks.wait(0.25)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize(
    "end", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), pytest.param(signal.SIGINT, marks=pytest.mark.long)]
)
def test_a_driver_ended_in_its_sweep_keeps_what_is_trained_and_goes_on_with_the_rest(
    small_data: str, tmp_path: Path, end: signal.Signals
) -> None:
    name = f"swept-by-{end.name.lower()}"
    task_uri = f"{REGISTRY}/{name}"
    path = recipe_file(tmp_path, name=name, data=small_data)
    process = start_run(path, *ASKED, verb="sweep")
    uri, before = trials_when(process, task_uri=task_uri, log=path.with_suffix(".log"))
    process.send_signal(end)
    assert process.wait(timeout=60) != 0
    over, underway = ([trial for trial in before if bool(trial["outcome"]) is wanted] for wanted in (True, False))
    recorder = ProgressRecorder()
    with connect():
        swept = run.sweep_only(load_recipe(path, overrides=ASKED), progress=recorder)
    trials = {row.trial: row for row in swept.rows if row.status != "pretrained"}
    assert len(trials) == 3
    assert {trial["trial"] for trial in before} < set(trials)
    assert len({row.config["learning_rate"] for row in trials.values()}) == 3
    trained = {(event.trial, event.epoch) for event in recorder.of_kind(EpochEvent)}
    for trial in over:
        assert trials[trial["trial"]].scores == tuple(epoch["score"] for epoch in trial["epochs"])
        assert not {(trial["trial"], number) for number in range(4)} & trained
    for trial in underway:
        assert len(trials[trial["trial"]].scores) >= 2  # then the goal may have stopped it
        assert (trial["trial"], 0) not in trained
    assert storage.exists(f"{swept.trained.weights}/head.safetensors")
    assert not [left for left in storage.list_files(uri) if "/checkpoints/" in left]
