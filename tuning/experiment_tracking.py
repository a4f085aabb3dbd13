"""Experiment trackers of a sweep, MLflow and TensorBoard, as Ray Tune's callbacks."""

import os
from importlib.util import find_spec
from typing import Any

from tailorbird.config.tuning import TuningConfig

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX"}  # the package that each tracker imports
MLFLOW_URI = "MLFLOW_TRACKING_URI"


def require_trackers(config: TuningConfig) -> None:
    """Raise ValueError if a tracker's package is not installed, or MLflow has no tracking URI."""
    for name in config.trackers:
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"tuning.trackers names {name}, and the package {PACKAGES[name]} is not installed; "
                f"pip install --editable '.[{name}]' in the project's folder, or leave {name} out of tuning.trackers"
            )
    if "mlflow" in config.trackers and not os.environ.get(MLFLOW_URI):
        raise ValueError(
            f"tuning.trackers names mlflow, and {MLFLOW_URI} is not set; set it to the URI of an MLflow server or to a "
            "database (sqlite:///mlflow.db), or leave mlflow out of tuning.trackers"
        )


def tracker_callbacks(config: TuningConfig, *, uri: str) -> list[Any]:
    """Return a callback for each tracker.

    MLflow's experiment has the sweep's URI as its name, unless MLFLOW_EXPERIMENT_NAME or MLFLOW_EXPERIMENT_ID is set;
    TensorBoard's event files are stored with each trial in `<uri>/tune/`.
    """
    require_trackers(config)
    callbacks: list[Any] = []
    if "mlflow" in config.trackers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        # Without a tracking_uri it unsets the variable instead of reading it.
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", uri)
        callbacks.append(MLflowLoggerCallback(tracking_uri=os.environ[MLFLOW_URI], experiment_name=name))
    if "tensorboard" in config.trackers:
        from ray.tune.logger import TBXLoggerCallback

        callbacks.append(TBXLoggerCallback())
    return callbacks
