"""The sweep with Ray Tune and Ray Train stops early, survives a killed worker and exports the best
trial."""

import os
import signal
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from ray.util import placement_group_table

from cluster.connection import connect
from cluster.event_queue import forward_events
from cluster.progress import EpochEvent, ProgressEvent, ProgressReporter, StepEvent
from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tailorbird.models.classifier import Classifier
from tailorbird.models.errors import ModelError
from tests.integration.machines import wait
from tests.integration.small import REGISTRY
from tests.integration.training.test_training import training_task, worker_pid
from tests.progress import ProgressRecorder
from training.classification_task import ClassificationTrainingTask, ClassifierRuntime
from tuning.sweep import SweepResult, sweep

pytestmark = [pytest.mark.usefixtures("connected"), pytest.mark.long]

RATES = {"learning_rate": Distribution(log_uniform=(1e-4, 4e-4))}
BASELINES = {"majority": 0.2, "probe": 0.99}


@dataclass(frozen=True, kw_only=True)
class FinishedSweep:
    """A finished sweep, its inputs and its events."""

    result: SweepResult
    training: TrainingConfig
    uri: str
    recorder: ProgressRecorder


def a_uri() -> str:
    return f"{REGISTRY}/sweep-{uuid.uuid4().hex}"


@pytest.fixture(scope="module")
def finished(small_data: str) -> Iterator[FinishedSweep]:
    """A sweep of two trials."""
    training = TrainingConfig(num_workers=1, epochs=2, batch_size=16)
    config = TuningConfig(num_trials=2, grace_epochs=2, space=RATES)
    uri = a_uri()
    recorder = ProgressRecorder()
    with connect(), forward_events(recorder) as events:
        task = training_task(small_data, num_rows=64)
        result = sweep(
            config,
            training=training,
            tasks={"base": task},
            baselines=BASELINES,
            uri=uri,
            events=events,
        )
        yield FinishedSweep(result=result, training=training, uri=uri, recorder=recorder)


def test_the_best_trial_is_exported_even_if_a_baseline_scores_higher(
    finished: FinishedSweep,
) -> None:
    result = finished.result
    trials = [row for row in result.rows if row.status != "baseline"]
    assert [row.status for row in trials] == ["completed", "completed"]
    assert [len(row.scores) for row in trials] == [2, 2]
    assert {row.trial: row.score for row in result.rows if row.status == "baseline"} == BASELINES
    assert result.rows[0].trial == "probe"
    rates = {row.config["learning_rate"] for row in trials}
    assert result.selected == finished.training.model_copy(
        update={"learning_rate": result.selected.learning_rate}
    )
    assert result.selected.learning_rate in rates
    assert storage.exists(f"{result.trained.weights}/head.safetensors")
    assert result.trained.score == max(row.score for row in trials)
    assert SweepResult.model_validate_json(result.model_dump_json()) == result
    assert len(finished.recorder.of_kind(EpochEvent)) == 4


@dataclass(frozen=True, kw_only=True)
class OneRefusedExport(ClassificationTrainingTask):
    """A task of which the first export is refused."""

    marker: Path  # a folder that exists after the first export

    def load_runtime(self, *, attention_dropout: float | None = None) -> ClassifierRuntime:
        return RefusingRuntime(**vars(super().load_runtime(attention_dropout=attention_dropout)))


class RefusingRuntime(ClassifierRuntime):
    def load(self, folder: Path, *, config: TrainingConfig) -> Classifier:
        assert isinstance(self.task, OneRefusedExport)
        with suppress(FileExistsError):
            self.task.marker.mkdir()
            raise ModelError("these weights are refused")
        return super().load(folder, config=config)


def test_a_trial_whose_export_is_refused_fails_and_another_trial_is_selected(
    small_data: str, tmp_path: Path
) -> None:
    task = OneRefusedExport(
        **vars(training_task(small_data, num_rows=32)), marker=tmp_path / "refused"
    )
    training = TrainingConfig(num_workers=1, epochs=1, batch_size=16)
    with connect():
        config = TuningConfig(num_trials=2, space=RATES)
        result = sweep(config, training=training, tasks={"base": task}, baselines={}, uri=a_uri())
    statuses = {row.status: row.config["learning_rate"] for row in result.rows}
    (failed,) = statuses.keys() - {"completed"}  # it was not tried again
    assert failed == "failed: these weights are refused"
    assert result.selected.learning_rate == statuses["completed"]
    assert storage.exists(f"{result.trained.weights}/head.safetensors")


def test_a_group_without_free_cpus_ends_with_the_sweep_and_holds_none(small_data: str) -> None:
    task = training_task(small_data, num_rows=32)
    with connect():
        num_cpus = int(ray.cluster_resources()["CPU"])
        training = TrainingConfig(num_workers=num_cpus, epochs=1, batch_size=16)
        config = TuningConfig(num_trials=2, max_concurrent_trials=2)
        result = sweep(config, training=training, tasks={"base": task}, baselines={}, uri=a_uri())
        wait(
            lambda: {group["state"] for group in placement_group_table().values()} == {"REMOVED"},
            within_s=60,
        )
        wait(lambda: ray.available_resources().get("CPU") == num_cpus, within_s=60)
    assert [row.status for row in result.rows] == ["completed", "completed"]


def test_ray_46814_a_trial_whose_worker_is_killed_resumes_and_the_others_complete(
    small_data: str,
) -> None:
    task = training_task(small_data, num_rows=32)
    training = TrainingConfig(
        epochs=4, batch_size=32, checkpoint_interval_s=0
    )  # one step an epoch, then a checkpoint
    config = TuningConfig(num_trials=2, space=RATES, grace_epochs=4)
    uri = a_uri()
    killed: list[str | None] = []
    undisturbed, recorder = ProgressRecorder(), ProgressRecorder()

    def report(event: ProgressEvent) -> None:
        recorder.record(event)
        # A checkpoint is uploaded while training continues, but before the next one is written.
        if isinstance(event, StepEvent) and event.epoch == 2 and not killed:
            killed.append(event.trial)
            os.kill(worker_pid(), signal.SIGKILL)

    with connect():
        with forward_events(undisturbed) as events:
            complete = sweep(
                config,
                training=training,
                tasks={"base": task},
                baselines={},
                uri=a_uri(),
                events=events,
            )
        with forward_events(ProgressReporter(report)) as events:
            result = sweep(
                config,
                training=training,
                tasks={"base": task},
                baselines={},
                uri=uri,
                events=events,
            )
    assert [row.status for row in result.rows] == ["completed", "completed"]
    assert len(killed) == 1
    epochs = [event.epoch for event in recorder.of_kind(EpochEvent) if event.trial == killed[0]]
    assert epochs.count(0) == 1  # it did not start again
    assert set(epochs) == {0, 1, 2, 3}
    # Repeated steps have the same result.
    assert [(row.config, row.scores) for row in result.rows] == [
        (row.config, row.scores) for row in complete.rows
    ]
    ends = [
        {(e.epoch, e.loss, e.score) for e in each.of_kind(EpochEvent)}
        for each in (undisturbed, recorder)
    ]
    assert ends[1] == ends[0]
    assert not [file for file in storage.list_files(uri) if "/checkpoints/" in file]
