"""Client for the Kubernetes API, with the two requests that a RayService needs: read an object, and
patch it."""

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


class KubernetesError(ValueError):
    """Raised if the Kubernetes API cannot be reached or refuses a request."""


class Changed(KubernetesError):
    """Raised if a patch does not apply, because the object was changed."""


def read_object(kind: str, *, namespace: str, name: str) -> Document:
    """Return an object of the group `ray.io/v1`; `kind` is its plural, such as `rayservices`."""
    answer: Document = _request("GET", kind, namespace, name).json()
    return answer


def patch_object(kind: str, patch: Sequence[Document], *, namespace: str, name: str) -> None:
    """Apply a JSON patch (RFC 6902) to an object; raise Changed if it does not apply, and change
    nothing then."""
    _request("PATCH", kind, namespace, name, json=patch)


def update_object(
    kind: str, patch_of: Callable[[Document], Sequence[Document]], *, namespace: str, name: str
) -> Document:
    """Apply the JSON patch that `patch_of` returns for an object, if it is not empty; return the
    object before it.

    Read the object again if it was changed in the meantime; raise Changed after `ATTEMPTS`
    attempts.
    """
    for attempt in range(1, ATTEMPTS + 1):
        before = read_object(kind, namespace=namespace, name=name)
        patch = patch_of(before)
        try:
            if patch:
                patch_object(kind, patch, namespace=namespace, name=name)
            break
        except Changed:
            if attempt == ATTEMPTS:
                raise
    return before


def _request(
    method: str, kind: str, namespace: str, name: str, *, json: Sequence[Document] | None = None
) -> requests.Response:
    server, token, verify = _server()
    url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/{kind}/{name}"
    if json is not None:
        headers = {"Content-Type": "application/json-patch+json"}
    else:
        headers = {}
    auth = bearer(token) if token else None
    try:
        answer = requests.request(
            method, url, json=json, headers=headers, auth=auth, verify=verify, timeout=TIMEOUT_S
        )
    except requests.RequestException as error:
        raise KubernetesError(
            f"the Kubernetes API is not reachable at {server} ({type(error).__name__})"
        ) from None
    if answer.status_code == 200:
        return answer
    reason = _reason(answer)
    if method == "PATCH" and answer.status_code in (409, 422):
        raise Changed(f"{namespace}/{name} could not be patched: {reason}")
    remedy = ""
    if answer.status_code == 403:
        remedy = (
            "; apply the platform of the overlay, which grants these rights to the service "
            "account `release`"
        )
    if answer.status_code == 404:
        remedy = "; apply the manifest that `tailorbird render RECIPE --to rayservice` writes"
    request = f"{method} {kind} {namespace}/{name}"
    raise KubernetesError(f"Kubernetes refuses {request} ({answer.status_code}): {reason}{remedy}")


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
