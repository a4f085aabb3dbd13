"""Waiting for a deploy: a slow start is reported and no failure; a failure that Serve reports ends
the deploy."""

import time
from collections.abc import Sequence

import pytest

from cluster.progress import NoteEvent, ProgressEvent, ProgressReporter
from serving.deploy import readiness, serve_client
from serving.deploy.application import application_of, replica_config
from serving.deploy.readiness import ReplicaStatus, wait_ready
from serving.deploy.serve_client import DeployError
from serving.deploy.serve_schema import ApplicationDetails
from serving.replica.config import config_id
from tailorbird.config.serving import DEPLOY_TIMEOUT_S, ServingConfig
from tests.unit.serving.deploy.registered import registered

APPLICATION = application_of(
    ServingConfig(), task_uri="s3://models/t", version=registered("full-1")
)
SLOW = "1 replicas that have taken more than 30s to be scheduled"


def details(
    status: str, *, states: Sequence[str] = (), message: str = "", deployment_message: str = ""
) -> ApplicationDetails:
    replicas = [{"replica_id": f"r{number}", "state": state} for number, state in enumerate(states)]
    deployment = {
        "status": "UPDATING",
        "message": deployment_message,
        "target_num_replicas": 1,
        "replicas": replicas,
    }
    declared = APPLICATION.to_json()
    return ApplicationDetails.model_validate(
        {
            "status": status,
            "message": message,
            "deployed_app_config": declared,
            "deployments": {"classifier": deployment},
        }
    )


class Clock:
    """A clock that `sleep` moves, a fake of Serve whose status changes with time, and a replica
    that is then ready."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, statuses: dict[float, ApplicationDetails]
    ) -> None:
        self.now = 0.0
        self.notes: list[str] = []
        self._statuses = statuses
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(time, "sleep", self.sleep)
        monkeypatch.setattr(serve_client, "serve_applications", lambda: {"t": self.status()})
        monkeypatch.setattr(readiness, "replica_status", lambda _url: self.readyz())

    def sleep(self, seconds: float) -> None:
        self.now += max(seconds, 1.0)

    def status(self) -> ApplicationDetails:
        return self._statuses[max(start for start in self._statuses if start <= self.now)]

    def readyz(self) -> ReplicaStatus:
        if not any(replica.state == "RUNNING" for replica in self.status().replicas):
            return readiness.UNREACHABLE
        digest = replica_config(APPLICATION).champion.digest
        wanted = config_id(APPLICATION.user_config)
        return ReplicaStatus(status="ready", digest=digest, config=wanted, replica="r0")

    def report(self, event: ProgressEvent) -> None:
        assert isinstance(event, NoteEvent)
        self.notes.append(event.text)

    def wait(self) -> None:
        wait_ready(APPLICATION, progress=ProgressReporter(self.report))


def test_a_slow_start_is_reported_from_serves_status_and_is_no_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock(
        monkeypatch,
        {
            0: details("DEPLOYING", states=["STARTING"]),
            600: details("DEPLOYING", states=["STARTING"], deployment_message=SLOW),
            1500: details("RUNNING", states=["RUNNING"]),
        },
    )
    clock.wait()
    assert clock.now >= 1500
    starting = "t: DEPLOYING; classifier UPDATING, 0 of 1 replicas running"
    assert clock.notes == [starting, f"{starting}; {SLOW}"]


UNHEALTHY = details("UNHEALTHY", message="the model's engine has stopped")
FAILED = details("DEPLOY_FAILED", deployment_message="ModuleNotFoundError: no module named 'x'")


@pytest.mark.parametrize(
    "statuses",
    [
        {0: details("DEPLOYING", states=["STARTING"]), 30: FAILED},
        {0: UNHEALTHY, 3: details("DEPLOYING"), 30: UNHEALTHY},  # Serve repairs it once
    ],
    ids=["failed", "unhealthy"],
)
def test_a_failure_that_serve_does_not_repair_ends_the_deploy_within_seconds(
    monkeypatch: pytest.MonkeyPatch, statuses: dict[float, ApplicationDetails]
) -> None:
    clock = Clock(monkeypatch, statuses)
    with pytest.raises(DeployError):
        clock.wait()
    assert 30 + readiness.FAILED_HOLDS_S < clock.now < 40


def test_after_the_timeout_of_the_recipe_the_deploy_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch, {0: details("DEPLOYING", states=["STARTING"])})
    with pytest.raises(DeployError):
        clock.wait()
    assert clock.now >= DEPLOY_TIMEOUT_S
