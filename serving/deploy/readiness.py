"""Wait until a deployed application serves its configuration, and report Serve's status
meanwhile."""

import time

import requests
from pydantic import ConfigDict

from cluster.certificates import verify
from cluster.progress import ProgressReporter
from serving.deploy import serve_client
from serving.deploy.application import replica_config
from serving.deploy.serve_client import DeployError, OverwrittenError, VersionRefusedError
from serving.deploy.serve_schema import ApplicationDetails, ServeApplication
from serving.http.schemas import Readiness
from serving.replica.config import config_id
from tailorbird.config.serving import DEPLOY_TIMEOUT_S

FAILED = ("DEPLOY_FAILED", "UNHEALTHY")
FAILED_HOLDS_S = 5
"""Time after which a failure is final. Right after a PUT, Serve can still report the status of the
previous deploy, and it replaces a replica that becomes unhealthy."""


class ReplicaStatus(Readiness):
    """The response of /readyz. Unknown keys are ignored, because the version's code may be newer
    than the client's."""

    model_config = ConfigDict(extra="ignore")


UNREACHABLE = ReplicaStatus(status="loading")


def replica_status(base_url: str) -> ReplicaStatus:
    """Return a replica's response to /readyz, or UNREACHABLE if the response is not valid."""
    try:
        return ReplicaStatus.model_validate(
            requests.get(f"{base_url}/readyz", timeout=5, verify=verify()).json()
        )
    except (requests.RequestException, ValueError):
        return UNREACHABLE


def wait_ready(application: ServeApplication, *, progress: ProgressReporter) -> None:
    """Poll /readyz until every running replica has loaded the configuration.

    Serve's own status is up to 30 s late. The proxy chooses a replica for each request, so the
    number of consecutive responses with the configuration must be twice the maximum number of
    replicas, and include each running replica.

    Raises DeployError with Serve's message if Serve reports a failure, or after
    `DEPLOY_TIMEOUT_S`; VersionRefusedError if a replica cannot load the version; and
    OverwrittenError as `declared_details` does.
    """
    name = application.name
    base_url = serve_client.application_url(application)
    num_answers = 2 * application.max_replicas
    config = replica_config(application)
    wanted = config_id(application.user_config)
    digest = config.champion.digest
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    failed_at: float | None = None
    reported = ""
    in_a_row = 0
    answered = set[str | None]()
    while time.monotonic() < deadline:
        status = replica_status(base_url)
        if status.config != wanted:  # the replica still has a previous configuration
            status = UNREACHABLE
        if status.refused == digest:
            reason = status.reason
            raise VersionRefusedError(
                f"{name}: the previous version still serves, the new one cannot be loaded: {reason}"
            )
        if status.digest == digest:
            in_a_row += 1
            answered.add(status.replica)
        else:
            in_a_row = 0
            answered.clear()
        if 0 < in_a_row < num_answers:
            continue
        details = declared_details(application)
        if in_a_row and running_replicas(details) <= answered:
            return
        if details.status not in FAILED:
            failed_at = None
        elif failed_at is None:
            failed_at = time.monotonic()
        elif time.monotonic() - failed_at > FAILED_HOLDS_S:
            raise DeployError(f"{name} could not be deployed: {serve_client.status_of(details)}")
        line = " ".join(f"{name}: {serve_client.status_of(details)}".split())
        if line != reported:
            progress.note(line)
            reported = line
        time.sleep(serve_client.POLL_S)
    raise DeployError(
        f"{name} did not answer with digest {digest} in {DEPLOY_TIMEOUT_S:g} s: "
        f"{serve_client.application_status(name)}; give the cluster room for its replicas, and run "
        "the command again"
    )


def declared_details(application: ServeApplication) -> ApplicationDetails:
    """Return Serve's details of the application; raise OverwrittenError if another client has
    changed or removed it."""
    name = application.name
    applications = serve_client.serve_applications()
    declared = serve_client.declared_in(applications).get(name)
    if declared is None or config_id(declared.user_config) != config_id(application.user_config):
        raise OverwrittenError(
            f"another client changed or removed {name} during the deploy; run `tailorbird serve "
            "RECIPE` again"
        )
    return applications[name]


def running_replicas(details: ApplicationDetails) -> set[str | None]:
    """Return the ids of the application's running replicas, as in /readyz."""
    return {replica.replica_id for replica in details.replicas if replica.state == "RUNNING"}
