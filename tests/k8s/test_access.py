"""Credentials, private authorities and registries: how pods get access to S3 stores and gated
models."""

from typing import Any

import pytest

from tests.k8s.manifests import ENVIRONMENTS, Pod, build, environment, matches, of_kind, pods_of

OURS = [
    (name, pod)
    for name in ENVIRONMENTS
    for pod in pods_of(environment(name))
    if "serviceAccountName" in pod.spec
]
IDS = [f"{name} {pod.name}" for name, pod in OURS]
CA_FOLDER = "/etc/ssl/tailorbird"


@pytest.mark.parametrize(("_name", "pod"), OURS, ids=IDS)
def test_every_container_reads_the_optional_credentials_of_its_account_only(
    _name: str, pod: Pod
) -> None:
    """Replicas must not get the credentials with which trainings write to the registry."""
    account = pod.spec["serviceAccountName"]
    for container in pod.containers:
        if container["name"] == "autoscaler":  # it uses the Kubernetes API only
            continue
        secrets = {
            source["secretRef"]["name"]: source["secretRef"] for source in container["envFrom"][1:]
        }
        assert secrets[f"{account}-credentials"]["optional"] is True
        assert set(secrets) <= {f"{account}-credentials", "endpoint-keys"}
        settings, *_ = container["envFrom"]
        assert "configMapRef" in settings  # a later source replaces variables of an earlier one


@pytest.mark.parametrize(("_name", "pod"), OURS, ids=IDS)
def test_every_container_mounts_the_optional_ca_bundle(_name: str, pod: Pod) -> None:
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    for container in pod.containers:
        if container["name"] == "autoscaler":
            continue
        (mount,) = (mount for mount in container["volumeMounts"] if mount["mountPath"] == CA_FOLDER)
        assert mount["readOnly"] is True
        assert volumes[mount["name"]]["configMap"] == {"name": "ca-bundle", "optional": True}


def test_on_premises_all_clients_use_the_private_authority_and_reach_the_port_of_the_store() -> (
    None
):
    documents = environment("onprem")
    maps = [
        each["data"]
        for each in of_kind(documents, "ConfigMap")
        if "ray-settings" in each["metadata"]["name"]
    ]
    assert len(maps) == 5
    for settings in maps:
        for name in ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
            assert settings[name] == f"{CA_FOLDER}/ca.crt"
        assert settings["AWS_ENDPOINT_URL"].endswith(":9000")
    policies = {
        policy["metadata"]["name"]: policy["spec"] for policy in of_kind(documents, "NetworkPolicy")
    }
    _, https = policies["names-and-stores"]["egress"]
    assert [entry["port"] for entry in https["ports"]] == [443, 9000]
    for pod in pods_of(documents):
        assert matches(policies["names-and-stores"]["podSelector"], pod.labels)


def test_on_premises_all_pods_can_pull_images_from_the_private_registry() -> None:
    documents = environment("onprem")
    secret = [{"name": "registry"}]
    accounts: dict[str, Any] = {
        account["metadata"]["name"]: account["imagePullSecrets"]
        for account in of_kind(documents, "ServiceAccount")
    }
    assert set(accounts) == {"training", "serving", "release"}
    for pod in pods_of(documents):
        assert (
            pod.spec.get("imagePullSecrets") or accounts[pod.spec["serviceAccountName"]]
        ) == secret
        assert all(
            each["image"].startswith("registry.example.internal/") for each in pod.containers
        )


def test_only_the_overlay_for_private_stores_sets_an_endpoint() -> None:
    for settings in of_kind(build("prod/service"), "ConfigMap"):
        assert not {"AWS_ENDPOINT_URL", "AWS_CA_BUNDLE"} & set(settings["data"])
