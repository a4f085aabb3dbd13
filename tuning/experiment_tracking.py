"""Experiment trackers of a sweep (MLflow and TensorBoard) as callbacks of Ray Tune."""

import os
from importlib.util import find_spec
from typing import Any

from tailorbird.config.tuning import TuningConfig

PACKAGES = {"mlflow": "mlflow", "tensorboard": "tensorboardX"}  # packages that the trackers import
MLFLOW_URI = "MLFLOW_TRACKING_URI"


def require_trackers(config: TuningConfig) -> None:
    """Raise ValueError if a tracker's package is not installed, or MLflow has no tracking URI."""
    for name in config.trackers:
        if find_spec(PACKAGES[name]) is None:
            raise ValueError(
                f"tuning.trackers contains {name}, but the package {PACKAGES[name]} is not "
                f"installed; run `pip install --editable '.[{name}]'` in the project folder, or "
                f"remove {name} from tuning.trackers"
            )
    if "mlflow" in config.trackers and not os.environ.get(MLFLOW_URI):
        raise ValueError(
            f"tuning.trackers contains mlflow, but {MLFLOW_URI} is not set; set it to the URI of "
            "an MLflow server or a database (sqlite:///mlflow.db), or remove mlflow from "
            "tuning.trackers"
        )


def tracker_callbacks(config: TuningConfig, *, uri: str) -> list[Any]:
    """Return a callback for each tracker.

    The name of the MLflow experiment is the sweep's URI, unless MLFLOW_EXPERIMENT_NAME or
    MLFLOW_EXPERIMENT_ID is set. TensorBoard event files are stored with each trial in
    `<uri>/tune/`.
    """
    require_trackers(config)
    callbacks: list[Any] = []
    if "mlflow" in config.trackers:
        from ray.air.integrations.mlflow import MLflowLoggerCallback

        # Without `tracking_uri`, the callback unsets the environment variable instead of reading
        # it.
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", uri)
        callbacks.append(
            MLflowLoggerCallback(tracking_uri=os.environ[MLFLOW_URI], experiment_name=name)
        )
    if "tensorboard" in config.trackers:
        from ray.tune.logger import TBXLoggerCallback

        callbacks.append(TBXLoggerCallback())
    return callbacks
