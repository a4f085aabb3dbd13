"""Requests to a server that answers like the Kubernetes API: it stores objects and applies JSON
patches."""

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import yaml

from serving.deploy.serve_client import ChallengerError, DeployError
from serving.deploy.serve_schema import ServeApplication
from tailorbird.registry.champion import Champion
from tailorbird.release import kube_api, rayservice
from tailorbird.release import serving as release_serving
from tailorbird.release.kube_api import KubernetesError, update_rayservice
from tailorbird.release.rayservice import RAYSERVICE, RayServiceRef, record_deployed
from tests.unit.cluster.stand_in import serving
from tests.unit.serving.deploy.registered import registered

NAMESPACE, TOKEN = "prod", "t0ken"
SERVICE = "rayservices/icd10-chapters"


class Kubernetes:
    """The objects of one namespace. `before_patch` is what another client does before the next
    patch."""

    def __init__(self) -> None:
        self.objects: dict[str, Any] = {}
        self.patches: list[str] = []
        self.num_requests = 0
        self.status: int | None = None
        self.before_patch: Callable[[], None] = lambda: None

    def answer(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, bytes]:
        self.num_requests += 1
        prefix = f"/apis/ray.io/v1/namespaces/{NAMESPACE}/"
        assert request.path.startswith(prefix)
        key = request.path.removeprefix(prefix)
        if self.status is not None or key not in self.objects:
            return self.status or 404, b'{"kind": "Status", "message": "not here or not allowed"}'
        if request.command == "GET":
            return 200, json.dumps(self.objects[key]).encode()
        assert request.headers["Content-Type"] == "application/json-patch+json"
        act, self.before_patch = self.before_patch, lambda: None
        act()
        self.patches.append(key)
        if _apply(self.objects[key], json.loads(body)):
            return 200, json.dumps(self.objects[key]).encode()
        return 422, b'{"kind": "Status", "message": "test failed"}'


def _apply(document: dict[str, Any], patch: list[dict[str, Any]]) -> bool:
    """Apply the operations test, add and replace in place; return False and change nothing if a
    test fails."""
    for operation in patch:
        node, last = _locate(document, operation["path"])
        if operation["op"] == "test" and node[last] != operation["value"]:
            return False
    for operation in patch:
        node, last = _locate(document, operation["path"])
        if operation["op"] != "test":
            assert operation["op"] == "add" or last in node
            node[last] = operation["value"]
    return True


def _locate(document: Any, path: str) -> tuple[Any, Any]:
    *way, last = path.removeprefix("/").split("/")
    for key in way:
        document = document[int(key)] if isinstance(document, list) else document[key]
    return document, last


@pytest.fixture
def kubernetes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    kubernetes = Kubernetes()
    monkeypatch.setenv(RAYSERVICE, f"{NAMESPACE}/icd10-chapters")
    with serving(kubernetes.answer) as address:
        monkeypatch.setenv("TAILORBIRD_KUBERNETES", address)
        yield kubernetes


def application(
    version: str, *, max_replicas: int = 2, name: str = "icd10-chapters"
) -> ServeApplication:
    serving = {"autoscaling": {"max_replicas": max_replicas}} if max_replicas > 1 else {}
    config = {"name": "classifier", "user_config": {"champion": version}}
    return ServeApplication.model_validate(
        {"name": name, "route_prefix": "/", "args": {"serving": serving}, "deployments": [config]}
    )


def service_of(*applications: ServeApplication) -> dict[str, Any]:
    config = {
        "proxy_location": "EveryNode",
        "applications": [each.to_json() for each in applications],
    }
    return {
        "metadata": {"name": "icd10-chapters"},
        "spec": {"serveConfigV2": yaml.safe_dump(config)},
    }


def declared_in(service: dict[str, Any]) -> dict[str, Any]:
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    assert config["proxy_location"] == "EveryNode"
    return {each["name"]: each for each in config["applications"]}


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> ServeApplication:
    """What Serve runs after a promotion. Its REST API is replaced here."""
    new = application("full-2")
    monkeypatch.setattr(rayservice, "declared_applications", lambda: {new.name: new})
    return new


def test_the_rayservice_gets_what_was_deployed_and_keeps_other_applications(
    kubernetes: Kubernetes, deployed: ServeApplication
) -> None:
    """The operator deploys serveConfigV2 again when it restarts, which would revert the
    promotion."""
    other = application("full-7", name="another-task")
    kubernetes.objects[SERVICE] = service_of(application("full-1"), other)
    assert record_deployed("s3://models/icd10-chapters") == f"{NAMESPACE}/icd10-chapters"
    declared = declared_in(kubernetes.objects[SERVICE])
    assert declared == {"icd10-chapters": deployed.to_json(), "another-task": other.to_json()}
    record_deployed("s3://models/icd10-chapters")  # the same again
    assert kubernetes.patches == [SERVICE]


def test_a_manifest_that_is_applied_at_the_same_time_is_not_overwritten(
    kubernetes: Kubernetes, deployed: ServeApplication
) -> None:
    kubernetes.objects[SERVICE] = service_of(application("full-1"))
    applied = service_of(application("full-1"), application("full-9", name="new-task"))["spec"]
    kubernetes.before_patch = lambda: kubernetes.objects[SERVICE].update(spec=applied)
    record_deployed("s3://models/icd10-chapters")
    declared = declared_in(kubernetes.objects[SERVICE])
    assert declared["icd10-chapters"] == deployed.to_json()
    assert set(declared) == {"icd10-chapters", "new-task"}
    assert kubernetes.patches == [SERVICE, SERVICE]


@pytest.mark.usefixtures("deployed")
def test_without_a_rayservice_or_a_served_task_nothing_is_recorded(
    kubernetes: Kubernetes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert record_deployed("s3://models/not-served") is None
    monkeypatch.delenv(RAYSERVICE)
    assert record_deployed("s3://models/icd10-chapters") is None
    assert kubernetes.num_requests == 0


@pytest.mark.parametrize("error", [None, ChallengerError("without the challenger")])
def test_a_switch_of_the_service_is_written_to_the_rayservice(
    kubernetes: Kubernetes,
    deployed: ServeApplication,
    monkeypatch: pytest.MonkeyPatch,
    error: ChallengerError | None,
) -> None:
    """Also if only the challenger cannot be served. Otherwise, the next restart of the operator
    restores the previous version."""

    def switch() -> None:
        release_serving.switch_service("s3://models/icd10-chapters", version, champion=champion)

    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setattr(release_serving, "switch_version", Mock(side_effect=error))
    kubernetes.objects[SERVICE] = service_of(application("full-1"))
    version = registered("full-2")
    champion = Champion.model_construct(version="full-2", uri=version.uri)
    with nullcontext() if error is None else pytest.raises(ChallengerError):
        switch()
    assert declared_in(kubernetes.objects[SERVICE]) == {"icd10-chapters": deployed.to_json()}
    kubernetes.status = 403
    with pytest.raises(DeployError, match="not allowed"):
        switch()


def test_the_rayservice_of_another_task_is_not_changed(
    kubernetes: Kubernetes, deployed: ServeApplication
) -> None:
    kubernetes.objects[SERVICE] = service_of(application("full-7", name="another-task"))
    with pytest.raises(KubernetesError, match="does not serve s3://models/icd10-chapters"):
        record_deployed("s3://models/icd10-chapters")
    assert kubernetes.patches == []
    assert deployed.name not in declared_in(kubernetes.objects[SERVICE])


def test_a_service_that_a_rayservice_would_start_again_is_not_stopped(
    kubernetes: Kubernetes,
) -> None:
    with pytest.raises(
        DeployError, match="kubectl delete rayservice icd10-chapters --namespace prod"
    ):
        release_serving.stop_service("s3://models/icd10-chapters")
    assert kubernetes.patches == []


def test_a_pod_uses_the_token_and_the_namespace_of_its_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, text in (("token", f"{TOKEN}\n"), ("namespace", NAMESPACE), ("ca.crt", "")):
        (tmp_path / name).write_text(text)
    for module in (kube_api, rayservice):
        monkeypatch.setattr(module, "ACCOUNT", tmp_path)
    monkeypatch.setenv(RAYSERVICE, "my-task")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "6443")
    assert rayservice.rayservice_of_environment() == RayServiceRef(NAMESPACE, "my-task")
    assert kube_api._server() == ("https://[fd00::1]:6443", TOKEN, str(tmp_path / "ca.crt"))


def test_outside_of_a_pod_a_proxy_and_a_namespace_are_required(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (kube_api, rayservice):
        monkeypatch.setattr(module, "ACCOUNT", tmp_path / "absent")
    monkeypatch.setenv(RAYSERVICE, "my-task")
    with pytest.raises(KubernetesError, match="set it to NAMESPACE/NAME"):
        rayservice.rayservice_of_environment()
    with pytest.raises(KubernetesError, match="run `kubectl proxy` and set TAILORBIRD_KUBERNETES"):
        update_rayservice(lambda _: [], namespace=NAMESPACE, name="x")
