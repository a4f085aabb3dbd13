"""A tracker that is not available is rejected before the first training."""

import pytest

from tailorbird.config.tuning import TuningConfig
from tuning import experiment_tracking


def test_without_trackers_no_package_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiment_tracking.PACKAGES, "mlflow", "no_such_package")
    experiment_tracking.require_trackers(TuningConfig())


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_a_tracker_without_its_package_is_rejected(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(experiment_tracking.PACKAGES, name, "no_such_package")
    config = TuningConfig.model_validate({"trackers": [name]})
    with pytest.raises(
        ValueError,
        match=rf"no_such_package is not installed; run `pip install --editable '\.\[{name}\]'",
    ):
        experiment_tracking.require_trackers(config)


def test_mlflow_without_a_tracking_uri_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiment_tracking.PACKAGES, "mlflow", "json")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = TuningConfig.model_validate({"trackers": ["mlflow"]})
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is not set; set it to the URI"):
        experiment_tracking.require_trackers(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    experiment_tracking.require_trackers(config)
