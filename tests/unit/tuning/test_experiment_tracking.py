"""A tracker that cannot be had is refused before anything is trained, with what to do."""

import pytest

from tailorbird.config.tuning import TuningConfig
from tuning import experiment_tracking


def test_without_trackers_nothing_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiment_tracking.PACKAGES, "mlflow", "no_such_package")
    experiment_tracking.require_trackers(TuningConfig())


@pytest.mark.parametrize("name", ["mlflow", "tensorboard"])
def test_a_tracker_whose_package_is_missing_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiment_tracking.PACKAGES, name, "no_such_package")
    config = TuningConfig.model_validate({"trackers": [name]})
    with pytest.raises(ValueError, match=rf"no_such_package is not installed; pip install --editable '\.\[{name}\]'"):
        experiment_tracking.require_trackers(config)


def test_mlflow_is_refused_where_nothing_says_where_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(experiment_tracking.PACKAGES, "mlflow", "json")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    config = TuningConfig.model_validate({"trackers": ["mlflow"]})
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is not set; set it to the URI"):
        experiment_tracking.require_trackers(config)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///mlflow.db")
    experiment_tracking.require_trackers(config)
