"""Beside the sweep: the trackers that a recipe names, as Ray Tune's own callbacks, or why one cannot be had."""

import os
from importlib.util import find_spec
from typing import Any

from tailorbird.config.tuning import TuningConfig

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX"}
"""What each tracker has to import."""
MLFLOW_URI = "MLFLOW_TRACKING_URI"


def require_trackers(config: TuningConfig) -> None:
    """Raises ValueError where a tracker's package is missing, or MLflow has not been told where to write."""
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
    """A callback a tracker: MLflow's experiment is named by the sweep's URI, unless MLFLOW_EXPERIMENT_NAME or _ID says
    otherwise; TensorBoard's event files lie where Tune keeps each trial, under `<uri>/tune/`.
    """
    require_trackers(config)
    callbacks: list[Any] = []
    if "mlflow" in config.trackers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        # Given none, it would unset the variable instead of reading it.
        callbacks.append(
            MLflowLoggerCallback(
                tracking_uri=os.environ[MLFLOW_URI], experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", uri)
            )
        )
    if "tensorboard" in config.trackers:
        from ray.tune.logger import TBXLoggerCallback

        callbacks.append(TBXLoggerCallback())
    return callbacks
