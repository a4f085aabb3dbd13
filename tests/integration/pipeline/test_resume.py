"""A driver killed between stages is run again and goes on; a champion that serves is one more rung for the next run."""

import signal
import subprocess
import threading
from pathlib import Path

import pytest

from cluster.connection import connect
from cluster.progress import SILENT, EpochEvent
from tailorbird import storage
from tailorbird.checks.verify import verify_evidence
from tailorbird.config.loader import load_recipe
from tailorbird.pipeline import run as pipeline
from tailorbird.pipeline.prepare import prepare
from tailorbird.registry.champion import read_champion
from tailorbird.release.promotion import promote_version
from tailorbird.release.runs import PromotionRefused
from tests.integration.small import REGISTRY, SmallRun, recipe_file, small_recipe, start_run, written
from tests.progress import ProgressRecorder

TINY = ("data.max_train_rows=64", "tuning.num_trials=1", "tuning.space={}", "training.batch_size=16")
WAIT_S = 240


def kill_after(stage: str, process: subprocess.Popen[str], *, task_uri: str, log: Path) -> None:
    """Kills the process as soon as the stage's value lies on S3."""
    ticks = threading.Event()
    for _ in range(4 * WAIT_S):
        if any(f"/{stage}-" in path for path in written(task_uri)):
            break
        assert process.poll() is None, log.read_text()
        ticks.wait(0.25)
    process.send_signal(signal.SIGKILL)
    process.wait()


def test_a_driver_killed_between_stages_goes_on_and_repeats_nothing(small_data: str, tmp_path: Path) -> None:
    name = "resumed"
    task_uri = f"{REGISTRY}/{name}"
    path = recipe_file(tmp_path, name=name, data=small_data)
    process = start_run(path, *TINY)
    kill_after("ladder", process, task_uri=task_uri, log=path.with_suffix(".log"))
    left = written(task_uri)
    assert [key.rsplit("/", 2)[1].split("-")[0] for key in left] == ["ladder"]
    recipe = load_recipe(path, overrides=TINY)
    recorder = ProgressRecorder()
    with connect():
        done = pipeline.run_pipeline(recipe, progress=recorder)
    assert left.items() <= written(task_uri).items()
    names = sorted(key.rsplit("/", 2)[1].split("-")[0] for key in written(task_uri))
    # Both models on test, on validation and on two changed sets, and the reference on test.
    assert names == [*9 * ["answers"], "cost", "ladder", "sweep", "temperature"]
    assert storage.exists(f"{done.run}/evidence.json")
    assert done.verdict.n == 400
    assert len({event.trial for event in recorder.of_kind(EpochEvent)}) == 1
    assert (done.evidence["look"], done.verdict.confirmatory) == (1, True)
    recorder = ProgressRecorder()
    with connect():
        renewed = pipeline.run_pipeline(load_recipe(path, overrides=(*TINY, "license=mit")), progress=recorder)
        asked_anew = pipeline.run_pipeline(
            load_recipe(path, overrides=(*TINY, "evaluation.valid_days=3650")), progress=recorder
        )
    assert recorder.of_kind(EpochEvent) == []  # neither trains: what is asked of the models is no part of what they are
    assert renewed.run != done.run
    assert [renewed.evidence[name] for name in ("look", "expires_at")] == [1, done.evidence["expires_at"]]
    assert (asked_anew.evidence["look"], asked_anew.verdict.confirmatory) == (2, False)
    with pytest.raises(PromotionRefused, match="not confirmatory"):
        promote_version(task_uri)
    assert [verify_evidence(run.run) for run in (done, renewed, asked_anew)] == [(), (), ()]


@pytest.mark.long
def test_a_driver_killed_before_the_seeds_keeps_its_sweep(small_data: str, tmp_path: Path) -> None:
    name = "seeds"
    task_uri = f"{REGISTRY}/{name}"
    path = recipe_file(tmp_path, name=name, data=small_data)
    overrides = (*TINY, "training.num_seeds=2")
    kill_after("sweep", start_run(path, *overrides), task_uri=task_uri, log=path.with_suffix(".log"))
    left = written(task_uri)
    with connect():
        done = pipeline.run_pipeline(load_recipe(path, overrides=overrides), progress=SILENT)
    assert left.items() <= written(task_uri).items()
    names = {key.rsplit("/", 2)[1].split("-")[0] for key in written(task_uri)}
    assert names == {"ladder", "sweep", "seed", "average", "temperature", "answers", "cost"}
    assert [seed["seed"] for seed in done.evidence["seeds"]] == [0, 1]
    mean, seeds = done.evidence["averaged"], [seed["validation"] for seed in done.evidence["seeds"]]
    assert mean["chosen"] == (mean["validation"] >= max(seeds))
    candidate = next(rung for rung in done.evidence["ladder"] if rung["role"] == "candidate")
    assert candidate["validation"] == max(mean["validation"], *seeds)
    ledger = storage.read_json(f"{task_uri}/test_set_ledgers/{done.evidence['ledger']['test_rows']}.json")
    assert ("/average-" in ledger[-1]["candidate"]) == mean["chosen"]


def test_the_champion_that_serves_is_a_rung_of_the_next_run(
    small_run: SmallRun, small_data: str, tmp_path: Path
) -> None:
    promote_version(small_run.recipe.task_uri)
    champion = read_champion(small_run.recipe.task_uri)
    assert champion is not None
    recipe = small_recipe(tmp_path, name="small", data=small_data, overrides=("data.max_train_rows=250",))
    with connect():
        prepared = prepare(recipe, progress=SILENT)
        rungs, incumbent = pipeline.climb_ladder(prepared, progress=SILENT)
    assert prepared.champion == champion[0].uri
    assert rungs[0]["uri"] == champion[0].uri
    assert champion[0].version in rungs[0]["note"]
    best = max(rung["validation"] for rung in rungs if rung["servable"])
    assert incumbent.validation == best >= rungs[0]["validation"]


def test_evaluate_refuses_to_train(small_data: str, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path, name="untrained", data=small_data, overrides=TINY)
    with connect(), pytest.raises(ValueError, match="the sweep of this recipe is not finished; `tailorbird sweep"):
        pipeline.run_pipeline(recipe, progress=SILENT, may_train=False)
    assert not storage.exists(f"{recipe.task_uri}/versions")
