"""A run resumes after its driver was killed between stages, and the champion is a baseline of the
next run."""

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from cluster.connection import connect
from cluster.progress import SILENT, EpochEvent
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.cli.options import ExitCode
from tailorbird.config.loader import load_recipe
from tailorbird.evaluation.baselines.baseline import select_incumbent
from tailorbird.pipeline.prepare import prepare
from tailorbird.pipeline.run import fit_baselines, run_pipeline
from tailorbird.registry.champion import read_champion
from tailorbird.registry.test_set_ledger import read_test_accesses
from tailorbird.release.promotion import promote_version
from tests.integration.small import (
    REGISTRY,
    SmallRun,
    recipe_file,
    small_recipe,
    start_run,
    written,
)
from tests.progress import ProgressRecorder

pytestmark = pytest.mark.usefixtures("connected")

TINY = (
    "data.max_train_rows=64",
    "tuning.num_trials=1",
    "tuning.space={}",
    "training.batch_size=16",
    "training.num_workers=1",
)
WAIT_S = 240


def kill_after(stage: str, process: subprocess.Popen[str], *, task_uri: str, log: Path) -> None:
    """Kill the process as soon as the stage's output is stored."""
    ticks = threading.Event()
    for _ in range(4 * WAIT_S):
        if any(f"/{stage}-" in path for path in written(task_uri)):
            break
        assert process.poll() is None, log.read_text()
        ticks.wait(0.25)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_driver_killed_between_stages_resumes_and_repeats_no_stage(
    small_data: str, tmp_path: Path
) -> None:
    name = "resumed"
    task_uri = f"{REGISTRY}/{name}"
    path = recipe_file(tmp_path, name=name, data=small_data)
    process = start_run(path, *TINY)
    kill_after("baselines", process, task_uri=task_uri, log=path.with_suffix(".log"))
    left = written(task_uri)
    assert [key.rsplit("/", 2)[1].split("-")[0] for key in left] == ["baselines"]
    recipe = load_recipe(path, overrides=TINY)
    recorder = ProgressRecorder()
    with connect():
        result = run_pipeline(recipe, progress=recorder)
    assert left.items() <= written(task_uri).items()
    names = sorted(key.rsplit("/", 2)[1].split("-")[0] for key in written(task_uri))
    assert set(names) == {"baselines", "cost", "decision", "mix", "predictions", "sweep"}
    # All models on test and on two changed sets; incumbent and candidate also on validation.
    assert names.count("predictions") == 3 * len(result.evidence.family.models) + 2
    assert storage.exists(f"{result.run}/evidence.json")
    assert result.verdict.n == 400
    assert len({event.trial for event in recorder.of_kind(EpochEvent)}) == 1
    # other tasks of the registry use these test rows too
    number = result.evidence.test_access.number
    recorder = ProgressRecorder()
    with connect():
        renewed = run_pipeline(
            load_recipe(path, overrides=(*TINY, "license=mit")), progress=recorder
        )
        other_protocol = run_pipeline(
            load_recipe(path, overrides=(*TINY, "evaluation.expected_gain=0.5")), progress=recorder
        )
    assert (
        recorder.of_kind(EpochEvent) == []
    )  # neither trains, because the protocol is not an input of training
    assert renewed.run != result.run
    assert (renewed.evidence.test_access.number, renewed.evidence.expires_at) == (
        number,
        result.evidence.expires_at,
    )
    assert other_protocol.evidence.test_access.number == number + 1
    assert other_protocol.verdict.alpha < renewed.verdict.alpha
    assert [verify_evidence(run.run) for run in (result, renewed, other_protocol)] == [(), (), ()]


@pytest.mark.slow
def test_a_terminated_command_ends_in_order_and_says_how_to_resume(
    small_data: str, tmp_path: Path
) -> None:
    path = recipe_file(tmp_path, name="terminated", data=small_data)
    overrides = (*TINY, "training.epochs=50")
    process = start_run(path, *overrides)
    log = path.with_suffix(".log")
    ticks = threading.Event()
    for _ in range(4 * WAIT_S):
        if '"event": "step"' in log.read_text():  # a thread waits for the training
            break
        assert process.poll() is None, log.read_text()
        ticks.wait(0.25)
    process.terminate()
    assert process.wait(timeout=WAIT_S) == ExitCode.TERMINATED, log.read_text()
    assert f"To resume: tailorbird run {path}" in log.read_text()
    for text in ("Traceback", "SIGTERM received", "Stack trace"):
        assert text not in log.read_text()


@pytest.mark.long
def test_a_driver_killed_before_the_seed_runs_reuses_its_sweep(
    small_data: str, tmp_path: Path
) -> None:
    name = "seeds"
    task_uri = f"{REGISTRY}/{name}"
    path = recipe_file(tmp_path, name=name, data=small_data)
    further = ("training.num_seeds=2", "data.max_train_rows=96")
    overrides = (*TINY, *further)
    kill_after(
        "sweep", start_run(path, *overrides), task_uri=task_uri, log=path.with_suffix(".log")
    )
    left = written(task_uri)
    with connect():
        result = run_pipeline(load_recipe(path, overrides=overrides), progress=SILENT)
    assert left.items() <= written(task_uri).items()
    names = {key.rsplit("/", 2)[1].split("-")[0] for key in written(task_uri)}
    assert names == {
        "baselines",
        "sweep",
        "seed",
        "average",
        "mix",
        "decision",
        "predictions",
        "cost",
    }
    assert [seed.seed for seed in result.evidence.seeds] == [0, 1]
    mean, seeds = result.evidence.averaged, [seed.validation for seed in result.evidence.seeds]
    assert mean is not None
    assert mean.chosen == (mean.validation >= max(seeds))
    candidate = next(score for score in result.evidence.scores if score.role == "candidate")
    mix, ledger = result.evidence.mix, read_test_accesses(task_uri)
    assert mix is not None
    mixed = mix.weight < 1
    assert candidate.validation == (mix.validation if mixed else max(mean.validation, *seeds))
    assert ("/mix-" in ledger[-1].models[1]) == mixed
    assert mixed or ("/average-" in ledger[-1].models[1]) == mean.chosen


def test_the_champion_is_the_incumbent_of_the_next_run(
    small_run: SmallRun, small_data: str, tmp_path: Path
) -> None:
    promote_version(small_run.recipe.task_uri)
    champion = read_champion(small_run.recipe.task_uri)
    assert champion is not None
    recipe = small_recipe(
        tmp_path, name="small", data=small_data, overrides=("data.max_train_rows=250",)
    )
    with connect():
        context = prepare(recipe, progress=SILENT)
        baselines = fit_baselines(context)
    assert context.registered.champion == champion[0].uri
    assert baselines[0].uri == champion[0].uri
    assert champion[0].version in baselines[0].note
    assert select_incumbent(baselines) == baselines[0]
