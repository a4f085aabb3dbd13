"""Access from outside: no overlay has it, so parts with the components are built here."""

from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.served_tasks import SERVED_TASKS
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.release.kube_documents import RenderError
from tailorbird.release.manifests import SERVICE, ServedChampion, render_manifest
from tests.k8s.manifests import K8S, ROOT, build_part, matches, of_kind, pods_of
from tests.k8s.test_network import DNS, GATEWAY, METADATA, STRANGER, End, Network
from tests.k8s.test_schemas import KUBERNETES

Document = dict[str, Any]
COMPONENTS = {
    "gateway": "../../components/gateway",
    "canary": "../../components/gateway, ../../components/gateway-canary",
    "alb": "../../components/alb",
    "pods": "../../components/gateway, ../../components/gateway-pods",
}


def my_task() -> Recipe:
    """Return a recipe whose service runs on two nodes, as the disruption budget requires."""
    overrides = (
        "name=my-task",
        "serving.autoscaling.min_replicas=2",
        "serving.autoscaling.max_replicas=3",
        "serving.autoscaling.max_replicas_per_node=1",
    )
    return load_recipe(ROOT / "recipes" / "icd10_chapters.yaml", overrides=overrides)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    parts = {}
    for name, components in COMPONENTS.items():
        listed = f"[{components}, ../prod/environment]"
        folder = tmp_path_factory.mktemp(name)
        parts[name] = build_part(folder, resource="../../base/service", components=listed)
    return parts


@pytest.fixture
def rendered(built: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Document]]:
    """Return the parts rendered for a recipe."""
    monkeypatch.setattr(
        "tailorbird.release.manifests._serve_config", lambda *_, **__: ServedChampion({})
    )
    return {
        name: list(yaml.safe_load_all(render_manifest(my_task(), to="rayservice", base=base).text))
        for name, base in built.items()
    }


def test_the_route_joins_the_gateway_and_leads_to_the_rendered_service(
    rendered: dict[str, list[Document]],
) -> None:
    (gateway,) = of_kind(rendered["gateway"], "Gateway")
    (route,) = of_kind(rendered["gateway"], "HTTPRoute")
    assert route["metadata"]["name"] == "serving-my-task"
    assert route["metadata"]["labels"][SERVICE] == "my-task"
    (parent,) = route["spec"]["parentRefs"]
    (listener,) = gateway["spec"]["listeners"]
    assert parent == {"name": gateway["metadata"]["name"], "sectionName": listener["name"]}
    values = yaml.safe_load((K8S / "components" / "gateway" / "values.yaml").read_text())["spec"]
    assert route["spec"]["hostnames"] == [listener["hostname"]] == [values["host"]]
    assert listener["protocol"] == "HTTPS"
    assert listener["tls"]["certificateRefs"] == [{"kind": "Secret", "name": values["certificate"]}]
    assert of_kind(rendered["gateway"], "GatewayValues") == []
    (rule,) = route["spec"]["rules"]
    assert rule["backendRefs"] == [{"name": "my-task-serve-svc", "port": 8000, "weight": 100}]
    assert rule["timeouts"] == {
        "request": "0s"
    }  # Envoy's default of 15 s would cut off chat answers


def test_a_canary_is_a_second_service_of_the_same_recipe(
    built: dict[str, str], rendered: dict[str, Any]
) -> None:
    text = render_manifest(
        my_task(), to="rayservice", base=built["alb"], name="my-task-canary"
    ).text
    (canary,) = of_kind(list(yaml.safe_load_all(text)), "RayService")
    assert canary["metadata"]["name"] == "my-task-canary"
    assert {pod.labels[SERVICE] for pod in pods_of([canary])} == {"my-task-canary"}
    assert {pod.labels[SERVICE] for pod in pods_of(of_kind(rendered["alb"], "RayService"))} == {
        "my-task"
    }
    for to, name in (("rayjob", "other"), ("rayservice", "9-lives"), ("rayservice", "x" * 48)):
        with pytest.raises(RenderError, match="it names a RayService"):
            render_manifest(my_task(), to=to, base=built["alb"], name=name)


def test_the_load_balancer_terminates_tls_and_waits_for_answers(
    rendered: dict[str, list[Document]],
) -> None:
    (ingress,) = of_kind(rendered["alb"], "Ingress")
    kubernetes_validate.validate(ingress, KUBERNETES, strict=True)
    (rule,) = ingress["spec"]["rules"]
    (path,) = rule["http"]["paths"]
    assert path["backend"]["service"] == {"name": "my-task-serve-svc", "port": {"number": 8000}}
    settings = ingress["metadata"]["annotations"]
    prefix = "alb.ingress.kubernetes.io"
    assert settings[f"{prefix}/listen-ports"] == '[{"HTTPS": 443}]'
    assert settings[f"{prefix}/target-type"] == "ip"  # the service has no port on nodes
    seconds = settings[f"{prefix}/load-balancer-attributes"].partition("timeout_seconds=")[2]
    assert int(seconds) > max(task.shutdown_s for task in SERVED_TASKS.values())


def test_a_balancer_without_pods_reaches_serve_on_workers_by_its_addresses(
    rendered: dict[str, list[Document]],
) -> None:
    policies = of_kind(rendered["alb"], "NetworkPolicy")
    (policy,) = (
        policy for policy in policies if policy["metadata"]["name"].startswith("balancer-to-serve")
    )
    kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    for pod in pods_of(rendered["alb"]):
        is_worker = pod.labels.get("ray.io/node-type") == "worker"
        assert matches(policy["spec"]["podSelector"], pod.labels) is is_worker
    (rule,) = policy["spec"]["ingress"]
    assert rule["ports"] == [{"protocol": "TCP", "port": 8000}]
    assert all(set(peer) == {"ipBlock"} for peer in rule["from"])
    assert "0.0.0.0/0" not in str(policy)


def test_a_gateway_in_the_namespace_of_the_service_reaches_only_serve_names_and_its_controller(
    rendered: dict[str, list[Document]],
) -> None:
    policies = of_kind(rendered["pods"], "NetworkPolicy")
    for policy in policies:
        kubernetes_validate.validate(policy, KUBERNETES, strict=True)
    (gateway,) = of_kind(rendered["pods"], "Gateway")
    pod = End(gateway["spec"]["infrastructure"]["labels"])
    assert pod.labels == GATEWAY.labels  # the label that admits gateways in other namespaces
    added = [policy for policy in policies if policy["metadata"]["name"].startswith("gateway-pods")]
    assert len(added) == 2
    network = Network("prod", added=added)
    istiod, envoy = (
        End({}, {"kubernetes.io/metadata.name": name}, ours=False)
        for name in ("istio-system", "envoy-gateway-system")
    )
    worker, head = (network.pods["serving", kind] for kind in ("worker", "head"))
    for port in (443, 10443, 15021):
        assert network.may(STRANGER, pod, port)
    for target, port in ((worker, 8000), (DNS, 53), (istiod, 15012), (envoy, 18000)):
        assert network.may(pod, target, port)
    assert not network.may(STRANGER, pod, 15000)
    assert not network.may(STRANGER, worker, 8000)
    refused = ((worker, 8265), (head, 8265), (head, 6379), (STRANGER, 443))
    for target, port in (*refused, *((metadata, 80) for metadata in METADATA)):
        assert not network.may(pod, target, port)
