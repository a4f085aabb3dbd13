"""From a registered version to a running Serve application, declaratively: the whole configuration is PUT."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests

from recipes.schema import ServingSection

IMPORT_PATH = "serving.app:build"
DEPLOYMENT = "classifier"
DEPLOY_TIMEOUT_S = 180
CALL_TIMEOUT_S = 30
POLL_S = 0.25
# Serve starts on the first PUT, which may fail while it does.
PUT_ATTEMPTS = 5
# A version that fails to load is retried by Serve before it gives up: this status is final.
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


class DeployError(ValueError):
    """A deploy that Serve refused or did not finish in time; the message carries Serve's own status."""


class VersionRefusedError(DeployError):
    """The version cannot be loaded; the one that served before serves on."""


@dataclass(frozen=True)
class Doors:
    """Where Ray's dashboard and Serve's HTTP listen, and the token for the first."""

    dashboard: str
    serve: str
    token: str | None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of a call to the dashboard."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def deploy(section: ServingSection, *, home: str, version_uri: str, digest: str, code_uri: str) -> str:
    """Makes the version the one that answers, waits until it does, and returns the base URL of its routes.

    Other applications are left as they are. A deploy that differs from the running one in its version alone
    changes `user_config` only: the replicas stay, and swap when the new version is loaded. Raises DeployError.
    """
    doors = find_doors()
    name = home.rstrip("/").rsplit("/", 1)[-1]
    before = _applications(doors)
    prefix = _route_prefix(name, before)
    application = {
        "name": name,
        "route_prefix": prefix,
        "import_path": IMPORT_PATH,
        "runtime_env": {"working_dir": code_uri},
        "args": {"home": home, "serving": section.model_dump(mode="json")},
        "deployments": [{"name": DEPLOYMENT, "user_config": {"version_uri": version_uri, "digest": digest}}],
    }
    others = [config for other, config in _declared(before).items() if other != name]
    _put(doors, [*others, application])
    base_url = doors.serve + prefix.rstrip("/")
    try:
        _wait_ready(doors, name, base_url=base_url, digest=digest)
    except VersionRefusedError:
        former = _declared(before).get(name)
        if former is not None:  # a replica that starts later must not be told to load what none can load
            _put(doors, [*others, former])
        raise
    return base_url


def undeploy(name: str) -> None:
    """Takes an application off the cluster and leaves the others; without it, nothing happens."""
    doors = find_doors()
    before = _applications(doors)
    if name not in before:
        return
    _put(doors, [config for other, config in _declared(before).items() if other != name])
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while name in _applications(doors):
        if time.monotonic() > deadline:
            raise DeployError(f"application {name!r} is still there after {DEPLOY_TIMEOUT_S} s: {_status(doors, name)}")
        time.sleep(POLL_S)


def find_doors() -> Doors:
    """The cluster's addresses from the environment that `tailorbird stack up` or a cluster sets."""
    dashboard = os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_DASHBOARD_ADDRESS")
    if not dashboard:
        raise DeployError(
            "no Ray dashboard is known: run `tailorbird stack up`, or set RAY_API_SERVER_ADDRESS to http://host:8265"
        )
    if "://" not in dashboard:
        dashboard = f"http://{dashboard}"
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path and Path(path).is_file():
        token = Path(path).read_text(encoding="utf-8").strip()
    serve = os.environ.get("TAILORBIRD_SERVE_URL", "http://127.0.0.1:8000")
    return Doors(dashboard.rstrip("/"), serve.rstrip("/"), token or None)


def _route_prefix(name: str, applications: dict[str, Any]) -> str:
    """Where it is already, else `/`, else, where another application holds that, `/<name>`."""
    if name in applications and applications[name].get("route_prefix"):
        return str(applications[name]["route_prefix"])
    taken = {application.get("route_prefix") for application in applications.values()}
    return "/" if "/" not in taken else f"/{name}"


def _declared(applications: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Configurations to send again: without `host` and `port`, which Serve shows but does not take."""
    return {
        name: {key: value for key, value in application["deployed_app_config"].items() if key not in ("host", "port")}
        for name, application in applications.items()
        if application.get("deployed_app_config") and application.get("status") != "DELETING"
    }


def _applications(doors: Doors) -> dict[str, Any]:
    answer = _call(doors, "GET")
    if answer.status_code != 200:
        raise DeployError(f"Ray's dashboard at {doors.dashboard} answered {answer.status_code}: {answer.text[:500]}")
    applications: dict[str, Any] = answer.json().get("applications", {})
    return applications


def _put(doors: Doors, applications: list[dict[str, Any]]) -> None:
    address = urlsplit(doors.serve)
    host = address.hostname or "127.0.0.1"
    body = {
        "proxy_location": "EveryNode",
        # Serve reads these once, when it starts: on loopback only this machine may call, else HAProxies of all nodes.
        "http_options": {"host": host if host == "127.0.0.1" else "0.0.0.0", "port": address.port or 8000},
        "applications": applications,
    }
    for attempt in range(PUT_ATTEMPTS):
        answer = _call(doors, "PUT", body)
        if answer.status_code == 200:
            return
        if answer.status_code < 500:
            break
        time.sleep(attempt + 1)
    raise DeployError(f"Serve refused the configuration ({answer.status_code}): {answer.text[-2000:]}")


def _call(doors: Doors, method: str, body: dict[str, Any] | None = None) -> requests.Response:
    url = f"{doors.dashboard}/api/serve/applications/"
    try:
        answer = requests.request(method, url, json=body, headers=doors.headers, timeout=CALL_TIMEOUT_S)
    except requests.RequestException as error:
        message = f"Ray is not reachable at {doors.dashboard}: {error}; start it with `tailorbird stack up`"
        raise DeployError(message) from None
    if answer.status_code in (401, 403):
        raise DeployError(f"Ray at {doors.dashboard} refused the token: set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH")
    return answer


def _wait_ready(doors: Doors, name: str, *, base_url: str, digest: str) -> None:
    """Asks /readyz for the digest: Serve's status lags behind by up to half a minute."""
    deadline = time.monotonic() + DEPLOY_TIMEOUT_S
    while time.monotonic() < deadline:
        ready = _ready(base_url)
        if ready.get("digest") == digest:
            return
        if ready.get("refused") == digest:
            raise VersionRefusedError(
                f"{name}: the version was refused, the former one serves on: {ready.get('reason')}"
            )
        status = _status(doors, name)
        if status.startswith(FAILED):
            raise DeployError(f"{name} could not be deployed: {status}")
        time.sleep(POLL_S)
    raise DeployError(f"{name} did not answer with digest {digest} in {DEPLOY_TIMEOUT_S} s: {_status(doors, name)}")


def _ready(base_url: str) -> dict[str, Any]:
    try:
        answer = requests.get(f"{base_url}/readyz", timeout=5)
        found = answer.json()
    except (requests.RequestException, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _status(doors: Doors, name: str) -> str:
    """Serve's status of the application and of its deployments, in one line; begins with the status itself."""
    application = _applications(doors).get(name)
    if application is None:
        return "not there"
    parts = [f"{application['status']} {application.get('message', '')}".strip()]
    for deployment, details in application.get("deployments", {}).items():
        if details.get("message"):
            parts.append(f"{deployment}: {details['status']} {details['message']}")
    return "; ".join(parts)[:4000]
