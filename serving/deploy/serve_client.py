"""Ray Serve's REST API."""

import os
import re
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cluster.dashboard import request_dashboard
from serving.http.schemas import LOCAL

if TYPE_CHECKING:
    pass


APPLICATIONS = "/api/serve/applications/"
POLL_S = 0.2
# Serve starts on the first PUT, which may fail while it does.
PUT_ATTEMPTS = 5


class DeployError(ValueError):
    """A deploy that Serve refused or did not finish in time; the message carries Serve's own status."""


class VersionRefusedError(DeployError):
    """The version cannot be loaded; the one that served before serves on."""


class OverwrittenError(DeployError):
    """Somebody else changed or removed the application while it was deployed."""


class ChallengerError(DeployError):
    """The version cannot be tried; the champion serves without it, as it was asked to or as before."""


def instance_of(applications: Sequence[dict[str, Any]], *, url: str) -> dict[str, Any]:
    """What Serve is told as a whole: its applications, and that it listens where clients call `url`."""
    address = urlsplit(url)
    return {
        "proxy_location": "EveryNode",
        # Serve reads these once, when it starts: on loopback only this machine may call, else HAProxies of all nodes.
        "http_options": {
            "host": "127.0.0.1" if _is_local(address.hostname) else "0.0.0.0",
            "port": address.port or 8000,
        },
        "applications": list(applications),
    }


def application_url(application: dict[str, Any]) -> str:
    return serve_url() + str(application["route_prefix"]).rstrip("/")


def serve_url() -> str:
    """Where Serve's HTTP listens, by TAILORBIRD_SERVE_URL; else Serve's own default."""
    return os.environ.get("TAILORBIRD_SERVE_URL", "http://127.0.0.1:8000").rstrip("/")


def declared_applications(applications: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Configurations to send again: without `host` and `port`, which Serve may show but does not take."""
    return {
        name: {key: value for key, value in application["deployed_app_config"].items() if key not in ("host", "port")}
        for name, application in applications.items()
        if application.get("deployed_app_config") and application.get("status") != "DELETING"
    }


def serve_applications() -> dict[str, Any]:
    applications: dict[str, Any] = serve_instance()["applications"]
    return applications


def serve_instance() -> dict[str, Any]:
    """What Serve says of itself and its applications."""
    answer = request_dashboard("GET", APPLICATIONS)
    if answer.status_code != 200:
        raise DeployError(f"Serve's status cannot be read ({answer.status_code}): {answer.text[:500]}")
    return {"applications": {}, **answer.json()}


def require_private_or_keys(instance: dict[str, Any]) -> None:
    """Raises DeployError where whoever reaches the machine could ask, and no key would keep them out."""
    options = instance.get("http_options")  # none before Serve is started: then we say where it listens
    listens = "127.0.0.1" if options is None else options.get("host") or "an address that it does not tell"
    if _is_local(urlsplit(serve_url()).hostname) and _is_local(listens):
        return
    raise DeployError(
        f"Serve at {serve_url()} (it listens on {listens}) can be reached from other machines, and serving.api_keys is "
        "not set: `tailorbird key NAME` makes a key; let TAILORBIRD_SERVE_URL name 127.0.0.1, before Serve starts; or, "
        "where a gateway keeps strangers out, set serving.guarded"
    )


def _is_local(host: str | None) -> bool:
    return host in LOCAL


def put_applications(applications: list[dict[str, Any]]) -> None:
    body = instance_of(applications, url=serve_url())
    for attempt in range(PUT_ATTEMPTS):
        answer = request_dashboard("PUT", APPLICATIONS, body=body)
        if answer.status_code == 200:
            return
        if answer.status_code < 500:
            break
        time.sleep(attempt + 1)
    raise DeployError(f"Serve refused the configuration ({answer.status_code}): {_end(answer.text)}")


def application_status(name: str) -> str:
    """Serve's status of the application and of its deployments; begins with the status itself."""
    application = serve_applications().get(name)
    if application is None:
        return "not there"
    parts = [f"{application['status']} {_end(application.get('message', ''))}".strip()]
    for deployment, details in application.get("deployments", {}).items():
        if details.get("message"):
            parts.append(f"{deployment} {details['status']}: {_end(details['message'])}")
    return "; ".join(parts)


def _end(text: str) -> str:
    """The end of a message, where a traceback says what happened, without colours."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).strip()
    return plain if len(plain) <= 1500 else f"[...] {plain[-1500:]}"
