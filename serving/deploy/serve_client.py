"""Client for Ray Serve's REST API."""

import os
import re
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from cluster.dashboard import request_dashboard
from serving.deploy.serve_schema import (
    ApplicationDetails,
    Json,
    ReplicaDetails,
    ServeApplication,
    ServeInstance,
)
from serving.http.schemas import LOCAL

APPLICATIONS = "/api/serve/applications/"
POLL_S = 0.2
PUT_ATTEMPTS = 5  # the first PUT starts Serve and can fail during the start


class DeployError(ValueError):
    """A deploy that Serve rejected or did not finish in time. The message contains Serve's
    status."""


class VersionRefusedError(DeployError):
    """A version that could not be loaded. The previous version still serves."""


class OverwrittenError(DeployError):
    """An application that another client changed or removed during the deploy."""


class ChallengerError(DeployError):
    """A challenger that cannot be served. The champion serves without it."""


def serve_body(applications: Sequence[ServeApplication], *, url: str) -> Json:
    """Return the body of a PUT: all applications, and the address on which Serve listens for
    `url`."""
    address = urlsplit(url)
    return {
        "proxy_location": "EveryNode",
        # Serve reads these options once, when it starts. With a loopback host, only this machine
        # can connect. Otherwise, an HAProxy on each node accepts connections.
        "http_options": {"host": listen_host(url), "port": address.port or 8000},
        "applications": [application.to_json() for application in applications],
    }


def listen_host(url: str) -> str:
    """Return the address that Serve must bind for clients that use `url`."""
    if urlsplit(url).hostname in LOCAL:
        return "127.0.0.1"
    return "0.0.0.0"


def application_url(application: ServeApplication) -> str:
    """Return the base URL of the application's routes."""
    return serve_url() + str(application.route_prefix).rstrip("/")


def serve_url() -> str:
    """Return the URL of Serve's HTTP proxy: TAILORBIRD_SERVE_URL, or Serve's default."""
    return os.environ.get("TAILORBIRD_SERVE_URL", "http://127.0.0.1:8000").rstrip("/")


def declared_applications() -> dict[str, ServeApplication]:
    """Return the configurations of all applications that are not being deleted, by name. A PUT must
    repeat them."""
    return declared_in(serve_applications())


def declared_in(applications: dict[str, ApplicationDetails]) -> dict[str, ServeApplication]:
    """Return the configurations in the details of applications, without those that are being
    deleted."""
    return {
        name: details.deployed_app_config
        for name, details in applications.items()
        if details.deployed_app_config is not None and details.status != "DELETING"
    }


def serve_applications() -> dict[str, ApplicationDetails]:
    """Return the status of all applications by name."""
    return serve_instance().applications


def replicas_of(name: str) -> list[ReplicaDetails]:
    """Return the replicas of an application, or an empty list if it does not exist."""
    application = serve_applications().get(name)
    if application is None:
        return []
    return application.replicas


def serve_instance() -> ServeInstance:
    """Return Serve's status."""
    answer = request_dashboard("GET", APPLICATIONS)
    if answer.status_code != 200:
        raise DeployError(
            f"Serve's status cannot be read ({answer.status_code}): {answer.text[:500]}"
        )
    return ServeInstance.model_validate(answer.json())


def require_private_or_keys(instance: ServeInstance) -> None:
    """Raise DeployError if other machines can reach Serve; for services without API keys."""
    options = instance.http_options  # None before Serve starts; `serve_body` then sets the address
    if options is None:
        listens = "127.0.0.1"
    else:
        listens = options.host or "an unknown address"
    if urlsplit(serve_url()).hostname in LOCAL and listens in LOCAL:
        return
    raise DeployError(
        f"Serve at {serve_url()} (it listens on {listens}) can be reached from other machines, but "
        "serving.api_keys is not set. Make a key with `tailorbird key NAME` and set "
        "serving.api_keys; or set TAILORBIRD_SERVE_URL to a URL with 127.0.0.1 before Serve "
        "starts; or, if a gateway authenticates clients, set serving.guarded"
    )


def put_applications(applications: Sequence[ServeApplication]) -> None:
    """Replace Serve's configuration; raise DeployError if Serve rejects it."""
    body = serve_body(applications, url=serve_url())
    for attempt in range(PUT_ATTEMPTS):
        answer = request_dashboard("PUT", APPLICATIONS, body=body)
        if answer.status_code == 200:
            return
        if answer.status_code < 500:
            break
        time.sleep(attempt + 1)
    raise DeployError(
        f"Serve rejected the configuration ({answer.status_code}): {end_of(answer.text)}"
    )


def application_status(name: str) -> str:
    """Return Serve's status of the application, followed by its messages."""
    return status_of(serve_applications().get(name))


def status_of(application: ApplicationDetails | None) -> str:
    """Return Serve's status in the details of an application and its deployments, with its
    messages."""
    if application is None:
        return "not known to Serve"
    parts = [f"{application.status} {end_of(application.message)}".strip()]
    for name, details in application.deployments.items():
        running = sum(replica.state == "RUNNING" for replica in details.replicas)
        parts.append(
            f"{name} {details.status}, {running} of {details.target_num_replicas} replicas running"
        )
        if details.message:
            parts.append(end_of(details.message))
    return "; ".join(parts)


def end_of(text: str) -> str:
    """Return the end of a message, where a traceback has its error, without colour codes."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    if len(plain) <= 1500:
        return plain
    return f"[...] {plain[-1500:]}"
