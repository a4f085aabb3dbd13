"""The parts of Ray's private API that the project uses exist; a failure names the part that has
changed."""

import importlib
from typing import Any

import pytest
import ray
from ray import tune
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerHealthCheckFailedError,
)
from ray.tune.execution import class_cache

from cluster import ray_private

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


def test_the_installed_ray_has_the_version_that_the_code_was_written_for() -> None:
    assert ray.__version__.startswith(f"{ray_private.RAY_VERSION}."), (
        "check cluster/ray_private.py with the new Ray"
    )


@pytest.mark.parametrize(
    "path",
    [
        "ray._common.usage.usage_constants:CLUSTER_METADATA_KEY",
        "ray._private.ray_constants:KV_NAMESPACE_CLUSTER",
        "ray._raylet:GcsClient",
        "ray._raylet:InnerGcsClient.internal_kv_get",
        "ray._private.state:available_resources_per_node",
        "ray._private.state:state.get_cluster_config",
        "ray.train.v2._internal.execution.context:get_train_context",
        "ray.train.v2._internal.execution.context:TrainContext.__dataclass_fields__.preemption_context",
        "ray.train.v2._internal.execution.worker_group.worker:RayTrainWorker.execute",
        "ray.train.v2._internal.execution.scaling_policy:ElasticScalingPolicy._count_possible_workers",
        "ray.train.torch:TorchTrainer._initialize_and_run_controller",
        "ray._private.state:actors",
        "ray._private.worker:Worker.current_job_id",
        "ray._raylet:CoreWorker.kill_actor",
        "ray.train.v2._internal.execution.controller:TrainController",
        "ray.tune.execution.class_cache:ENV_VARS_TO_PROPAGATE",
    ],
)
def test_a_private_part_exists(path: str) -> None:
    module, _, attributes = path.partition(":")
    value: Any = importlib.import_module(module)
    for name in attributes.split("."):
        value = value[name] if isinstance(value, dict) else getattr(value, name, None)
        assert value is not None, (
            f"Ray {ray.__version__} has no {path}; which Ray {ray_private.RAY_VERSION} has"
        )


def test_the_exceptions_in_which_ray_train_wraps_an_error_are_removed() -> None:
    error = ZeroDivisionError("by zero")
    wrapped = UserExceptionWithTraceback(error, "Traceback (most recent call last): ...")
    failed_check = WorkerHealthCheckFailedError("Failed to check worker", failure=error)
    for failure in (wrapped, failed_check, error):
        assert ray_private.unwrap_worker_failure(failure) is error


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        class_cache, "ENV_VARS_TO_PROPAGATE", class_cache.ENV_VARS_TO_PROPAGATE | set(NAMES)
    )
    for name in NAMES:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")


def passed_on() -> dict[str, str]:
    """Return the environment variables that Tune passes to an actor."""
    actor = class_cache._ActorClassCache().get(tune.Trainable)
    return dict(actor._default_options["runtime_env"]["env_vars"])


@pytest.mark.usefixtures("keys")
def test_tune_does_not_pass_s3_keys_to_its_actors() -> None:
    assert "secret" in passed_on().values()
    ray_private.exclude_from_tune_actors("AWS_")
    assert "secret" not in passed_on().values()
    assert passed_on()["RAY_CHDIR_TO_TRIAL_DIR"] == "0"  # other variables are still passed


def test_a_failed_trial_of_tune_has_the_attribute_with_its_pickled_error() -> None:
    from ray.tune.experiment.trial import _TrainingRunMetadata

    assert hasattr(_TrainingRunMetadata(), "pickled_error_filename")
