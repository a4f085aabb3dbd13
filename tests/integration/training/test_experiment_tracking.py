"""A recipe's trackers get each trial's configuration and epochs, by their real packages."""

import uuid
from pathlib import Path

import pytest

from cluster.connection import connect
from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import Distribution, TuningConfig
from tests.integration.small import REGISTRY
from tests.integration.training.test_training import training_task
from tuning.futility import Target
from tuning.sweep import sweep

pytest.importorskip("mlflow")
pytest.importorskip("tensorboardX")


def test_mlflow_and_tensorboard_have_each_trial(
    small_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    space = {"learning_rate": Distribution(log_uniform=(1e-4, 4e-4))}
    config = TuningConfig.model_validate(
        {"num_trials": 2, "space": space, "trackers": ["mlflow", "tensorboard"], "grace_epochs": 2}
    )
    training = TrainingConfig(num_workers=1, epochs=2, batch_size=16)
    uri = f"{REGISTRY}/sweep-{uuid.uuid4().hex}"
    with connect():
        task = training_task(small_data, num_rows=32)
        result = sweep(config, training=training, task=task, target=Target({}, 0.0, ""), uri=uri)
    client = MlflowClient()
    experiment = client.get_experiment_by_name(uri)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    tracked = {
        (
            float(run.data.params["learning_rate"]),
            tuple(metric.value for metric in client.get_metric_history(run.info.run_id, "score")),
        )
        for run in runs
    }
    assert tracked == {(row.config["learning_rate"], row.scores) for row in result.rows}
    assert {run.info.status for run in runs} == {"FINISHED"}
    events = [file for file in storage.list_files(f"{uri}/tune") if "events.out.tfevents" in file]
    assert len(events) == 2
