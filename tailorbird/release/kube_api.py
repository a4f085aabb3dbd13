"""Client for the Kubernetes API that reads and patches a RayService."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import requests

from cluster.bearer_auth import bearer
from tailorbird.release.kube_documents import Document

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Folder in a pod with the token of its service account."""
PROXY = "TAILORBIRD_KUBERNETES"
"""Environment variable with the URL of a `kubectl proxy`, for clients that are not in a pod."""
TIMEOUT_S = 30
ATTEMPTS = 5  # to change an object that others change too
CONFLICT = (409, 422)
REMEDIES = {
    403: "; apply the platform of the overlay, which grants these rights to the service account "
    "`release`",
    404: "; apply the manifest that `tailorbird render RECIPE --to rayservice` writes",
}


class KubernetesError(ValueError):
    """Raised if the Kubernetes API cannot be reached or refuses a request."""


def update_rayservice(
    patch_of: Callable[[Document], Sequence[Document]], *, namespace: str, name: str
) -> None:
    """Apply the JSON patch (RFC 6902) that `patch_of` returns for a RayService, if it is not empty.

    If the RayService was changed in the meantime, the patch does not apply; read it again and
    repeat, at most `ATTEMPTS` times.
    """
    for _ in range(ATTEMPTS):
        patch = patch_of(_request("GET", namespace, name).json())
        if not patch:
            return
        answer = _request("PATCH", namespace, name, patch=patch)
        if answer.status_code == 200:
            return
    raise KubernetesError(f"{namespace}/{name} could not be patched: {_reason(answer)}")


def _request(
    method: str, namespace: str, name: str, *, patch: Sequence[Document] | None = None
) -> requests.Response:
    """Return the answer of the API: 200, or one of `CONFLICT` for a patch that does not apply."""
    server, token, verify = _server()
    url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayservices/{name}"
    headers = {}
    if patch is not None:
        headers["Content-Type"] = "application/json-patch+json"
    auth = bearer(token) if token else None
    try:
        answer = requests.request(
            method, url, json=patch, headers=headers, auth=auth, verify=verify, timeout=TIMEOUT_S
        )
    except requests.RequestException as error:
        raise KubernetesError(
            f"the Kubernetes API is not reachable at {server} ({type(error).__name__})"
        ) from None
    status = answer.status_code
    if status == 200 or (patch is not None and status in CONFLICT):
        return answer
    raise KubernetesError(
        f"Kubernetes refuses {method} rayservices {namespace}/{name} ({status}): "
        f"{_reason(answer)}{REMEDIES.get(status, '')}"
    )


def _server() -> tuple[str, str | None, str | bool]:
    """Return the URL of the API, the token, and the file with its certificates (True for the
    system's)."""
    proxy = os.environ.get(PROXY)
    if proxy:
        return proxy.rstrip("/"), None, True
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    port = os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    token = ACCOUNT / "token"
    if not host or not token.is_file():
        raise KubernetesError(
            "no access to the Kubernetes API: this is not a pod with a token; run `kubectl proxy` "
            f"and set {PROXY}=http://127.0.0.1:8001"
        )
    address = f"[{host}]" if ":" in host else host
    return f"https://{address}:{port}", token.read_text().strip(), str(ACCOUNT / "ca.crt")


def _reason(answer: requests.Response) -> str:
    """Return the message of a Kubernetes `Status`, or the start of the answer."""
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.text
    return str(message)[:500]
