"""What Ray Tune is kept from."""

from typing import Any

import pytest
from ray import tune
from ray.tune.execution import class_cache

from tuning.tuner import keep_keys_here

NAMES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", class_cache.ENV_VARS_TO_PROPAGATE | set(NAMES))
    for name in NAMES:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")


def sent() -> dict[str, Any]:
    """The environment variables of an actor of Tune's."""
    actor = class_cache._ActorClassCache().get(tune.Trainable)
    return dict(actor._default_options["runtime_env"]["env_vars"])


@pytest.mark.usefixtures("keys")
def test_tune_sends_no_key_of_s3_along_with_its_actors() -> None:
    assert "secret" in sent().values()
    keep_keys_here()
    assert "secret" not in sent().values()
    assert sent()["RAY_CHDIR_TO_TRIAL_DIR"] == "0"  # what it sends beside them it sends still
