"""Connections that the network policies of each overlay allow."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from tests.k8s.manifests import ENVIRONMENTS, environment, matches, of_kind, pods_of

Document = dict[str, Any]


@dataclass(frozen=True)
class End:
    """One end of a connection: a pod in a namespace, both with labels."""

    labels: dict[str, str]
    namespace: dict[str, str] = field(default_factory=dict)
    ours: bool = True
    address: str = "10.0.0.9"


GATEWAY_LABEL = {"tailorbird.io/gateway": "true"}
GATEWAY = End(GATEWAY_LABEL, {"kubernetes.io/metadata.name": "ingress"} | GATEWAY_LABEL, ours=False)
OPERATOR = End(
    {"app.kubernetes.io/name": "kuberay-operator"},
    {"kubernetes.io/metadata.name": "kuberay-operator"},
    ours=False,
)
PROMETHEUS = End({"app": "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"}, ours=False)
STRANGER = End({"app": "stranger"}, {"kubernetes.io/metadata.name": "default"}, ours=False)
PRETENDER = End(GATEWAY_LABEL, {"kubernetes.io/metadata.name": "default"}, ours=False)
NEWCOMER = End({"app": "unknown pod in our namespace"})
DNS = End({"k8s-app": "kube-dns"}, {"kubernetes.io/metadata.name": "kube-system"}, ours=False)
DNS_OF_THE_NODE = End({}, ours=False, address="169.254.20.10")
METADATA = tuple(
    End({}, ours=False, address=f"169.254.{end}") for end in ("169.254", "169.252", "170.23")
)


class Network:
    """The network policies and pods of an environment, and other documents in its namespace."""

    def __init__(self, name: str, *, added: Sequence[Document] = ()) -> None:
        documents = [*environment(name), *added]
        self.policies = [policy["spec"] for policy in of_kind(documents, "NetworkPolicy")]
        self.pods = {
            (pod.labels["tailorbird.io/role"], pod.labels.get("ray.io/node-type", "")): End(
                pod.labels
            )
            for pod in pods_of(documents)
        }

    def may(self, source: End, target: End, port: int) -> bool:
        """True if the policies of both ends allow a connection to the port."""
        out = not source.ours or self._allows("Egress", source, target, port)
        return out and (not target.ours or self._allows("Ingress", target, source, port))

    def _allows(self, direction: str, own: End, other: End, port: int) -> bool:
        mine = [
            policy
            for policy in self.policies
            if direction in policy["policyTypes"] and matches(policy["podSelector"], own.labels)
        ]
        rules = [rule for policy in mine for rule in policy.get(direction.lower(), [])]
        return not mine or any(_rule_allows(rule, direction, other, port) for rule in rules)


def _rule_allows(rule: Document, direction: str, other: End, port: int) -> bool:
    if "ports" in rule and port not in [entry["port"] for entry in rule["ports"]]:
        return False
    peers = rule.get("from" if direction == "Ingress" else "to")
    return peers is None or any(_is_peer(peer, other) for peer in peers)


def _is_peer(peer: Document, other: End) -> bool:
    if "ipBlock" in peer:
        block, address = peer["ipBlock"], ip_address(other.address)
        inside = address in ip_network(block["cidr"])
        return inside and not any(
            address in ip_network(network) for network in block.get("except", [])
        )
    if "namespaceSelector" not in peer and not other.ours:
        return False
    if "namespaceSelector" in peer and not matches(peer["namespaceSelector"], other.namespace):
        return False
    return matches(peer.get("podSelector", {}), other.labels)


NETWORKS = {name: Network(name) for name in ENVIRONMENTS}
SERVING_HEAD, SERVING_WORKER = ("serving", "head"), ("serving", "worker")
TRAINING_HEAD, TRAINING_WORKER = ("training", "head"), ("training", "worker")
CODE_PORTS = (8265, 6379, 10001)
"""Ports whose clients can run code."""


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_from_outside_only_the_operator_reaches_a_code_port_and_only_the_dashboard(
    name: str,
) -> None:
    network = NETWORKS[name]
    for other in (GATEWAY, PROMETHEUS, STRANGER, PRETENDER, NEWCOMER, OPERATOR):
        for location, pod in network.pods.items():
            for port in CODE_PORTS:
                wanted = other is OPERATOR and port == 8265 and location[1] == "head"
                assert network.may(other, pod, port) is wanted, (other, location, port)


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_a_training_and_the_service_do_not_reach_each_other(name: str) -> None:
    network = NETWORKS[name]
    for source, target in (
        (TRAINING_WORKER, SERVING_HEAD),
        (SERVING_WORKER, TRAINING_HEAD),
        (TRAINING_HEAD, SERVING_WORKER),
    ):
        for port in (*CODE_PORTS, 8000, 8080, 30000):
            assert not network.may(network.pods[source], network.pods[target], port)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_the_pods_of_a_cluster_reach_each_other_on_all_ports(name: str) -> None:
    network = NETWORKS[name]
    roles = {role for role, node_type in network.pods if node_type == "head"}
    assert len(roles) == 2
    for role in roles:
        for source, target in (("worker", "head"), ("head", "worker"), ("worker", "worker")):
            for port in (*CODE_PORTS, 8000, 30000, 54321):
                assert network.may(network.pods[role, source], network.pods[role, target], port)


@pytest.mark.parametrize("name", ["staging", "prod"])
def test_only_a_labelled_gateway_and_a_client_job_reach_the_service(name: str) -> None:
    network = NETWORKS[name]
    head, worker = network.pods[SERVING_HEAD], network.pods[SERVING_WORKER]
    assert network.may(GATEWAY, worker, 8000)
    assert not network.may(GATEWAY, head, 8000)
    for port in (8080, 9101, 8404, 30000):  # metrics, HAProxy's ports, a replica
        assert not network.may(GATEWAY, worker, port)
    for other in (PRETENDER, STRANGER, NEWCOMER, PROMETHEUS):
        assert not network.may(other, worker, 8000)
    client = network.pods["client", ""]
    assert network.may(client, head, 8265)
    assert network.may(client, worker, 8000)
    assert not network.may(client, head, 6379)
    assert not network.may(client, network.pods[TRAINING_HEAD], 8265)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_prometheus_reaches_all_metrics_and_the_operator_reaches_the_heads_proxy(name: str) -> None:
    network = NETWORKS[name]
    for (_, node_type), pod in network.pods.items():
        assert network.may(PROMETHEUS, pod, 8080) is bool(node_type)
        assert network.may(OPERATOR, pod, 8000) is (node_type == "head")
        assert not network.may(STRANGER, pod, 8080)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_all_pods_reach_dns_and_s3_and_only_heads_and_clients_reach_kubernetes(name: str) -> None:
    network = NETWORKS[name]
    store = End({}, ours=False, address="203.0.113.9")
    for (role, node_type), pod in network.pods.items():
        assert network.may(pod, DNS, 53), role
        assert network.may(pod, DNS_OF_THE_NODE, 53)
        assert not any(
            network.may(pod, address, port) for address in METADATA for port in (53, 80, 443, 988)
        )
        assert network.may(pod, store, 443)
        assert not network.may(pod, store, 80)
        assert network.may(pod, store, 6443) is (node_type == "head" or role == "client")
        assert not network.may(pod, STRANGER, 5432)


def test_only_the_service_reaches_redis() -> None:
    network = NETWORKS["prod"]
    redis = network.pods["store", ""]
    for (role, _), source in network.pods.items():
        assert network.may(source, redis, 6379) is (role == "serving"), role
    for other in (STRANGER, GATEWAY, OPERATOR, NEWCOMER, PROMETHEUS):
        assert not network.may(other, redis, 6379)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_selector_and_peer_of_a_policy_matches_a_pod(name: str) -> None:
    network = NETWORKS[name]
    outside = (GATEWAY, OPERATOR, PROMETHEUS, DNS)
    for policy in network.policies:
        assert any(matches(policy["podSelector"], pod.labels) for pod in network.pods.values())
        for direction, key in (("ingress", "from"), ("egress", "to")):
            for rule in policy.get(direction, []):
                for peer in rule.get(key, []):
                    ends = outside if "namespaceSelector" in peer else tuple(network.pods.values())
                    assert "ipBlock" in peer or any(_is_peer(peer, end) for end in ends), peer
