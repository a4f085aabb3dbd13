"""Security, resources, images and shutdown of all pods of the overlays."""

import re
from collections import Counter
from itertools import product
from typing import Any

import pytest
import yaml

from serving.served_tasks import SERVED_TASKS
from tests.k8s.manifests import (
    CLUSTER_SPEC,
    ENVIRONMENTS,
    K8S,
    PARTS,
    Document,
    Pod,
    build,
    cluster_of,
    environment,
    of_kind,
    pods_of,
    text_of,
)
from tests.k8s.pod_security import refusals

UNITS = {"m": 1e-3, "": 1, "Mi": 2**20, "Gi": 2**30}
CHECKED = ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory")
# A RayService starts a complete new cluster before it deletes the old one.
AT_ONCE = {"RayService": 2}
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|SECRET|KEY")
DIGEST = re.compile(r".+@sha256:[0-9a-f]{64}")
TAG = re.compile(r".+:(?!latest$)[^:/]+")
PRIORITIES = {
    each["metadata"]["name"]
    for each in yaml.safe_load_all((K8S / "operator/priorities.yaml").read_text())
}
ALL_PODS = [(name, pod) for name in ENVIRONMENTS for pod in pods_of(environment(name))]
IDS = [f"{name} {pod.name}" for name, pod in ALL_PODS]


def quota_of(documents: list[Document], name: str) -> Any:
    """Return the specification of the quota with this name."""
    quotas = of_kind(documents, "ResourceQuota")
    (spec,) = (quota["spec"] for quota in quotas if quota["metadata"]["name"] == name)
    return spec


def amount(quantity: str) -> float:
    number, unit = re.fullmatch(r"([\d.]+)(\D*)", str(quantity)).groups()  # type: ignore[union-attr]
    return float(number) * UNITS[unit]


@pytest.mark.parametrize(("name", "pod"), ALL_PODS, ids=IDS)
def test_every_pod_satisfies_the_level_restricted_of_its_namespace(name: str, pod: Pod) -> None:
    (namespace,) = of_kind(environment(name), "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod.namespace == namespace["metadata"]["name"]
    assert refusals(pod) == []


@pytest.mark.parametrize(("name", "pod"), ALL_PODS, ids=IDS)
def test_every_pod_has_limits_fixed_images_and_the_token_and_priority_of_its_role(
    name: str, pod: Pod
) -> None:
    """A training cannot take the room that a service needs, and a promotion starts while trainings
    fill their quota."""
    role = pod.labels["tailorbird.io/role"]
    for container in pod.containers:
        resources, image = container["resources"], container["image"]
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= set(resources[kind]), container["name"]
        # A pod that requests less memory than its limit may be killed when the node is out of
        # memory.
        memory = [resources[kind]["memory"] for kind in ("requests", "limits")]
        assert memory[0] == memory[1] or role == "client"
        fixed = DIGEST if name == "prod" else TAG
        assert fixed.fullmatch(image), image
    scales = "autoscaler" in {container["name"] for container in pod.containers}
    assert pod.spec["automountServiceAccountToken"] is (scales or role == "client")
    is_training = role in ("training", "preflight", "shared", "watch")
    wanted = f"tailorbird-{'training' if is_training else 'serving'}"
    assert pod.spec["priorityClassName"] == wanted
    assert wanted in PRIORITIES


@pytest.mark.parametrize(("_name", "pod"), ALL_PODS, ids=IDS)
def test_a_pod_requests_disk_for_its_volumes(_name: str, pod: Pod) -> None:
    """Otherwise the scheduler chooses nodes whose disk is full, and the kubelet evicts the pod."""
    volumes = [volume["emptyDir"] for volume in pod.spec.get("volumes", []) if "emptyDir" in volume]
    disk = sum(amount(each["sizeLimit"]) for each in volumes if each.get("medium") != "Memory")
    requests = [container["resources"]["requests"] for container in pod.containers]
    requested = sum(amount(each.get("ephemeral-storage", "0")) for each in requests)
    assert requested > disk or disk == 0


READ_ONLY = [
    pytest.param(pod, container, id=f"{name} {pod.name}")
    for name, pod in ALL_PODS
    for container in pod.containers
    if container["securityContext"].get("readOnlyRootFilesystem")
    and "tailorbird" in container["image"]
]


@pytest.mark.parametrize(("pod", "container"), READ_ONLY)
def test_a_container_with_a_read_only_root_filesystem_has_a_writable_home(
    pod: Pod, container: Any
) -> None:
    """Ray always writes a token to ~/.ray when it starts a cluster."""
    home_dir = next(
        variable["value"] for variable in container["env"] if variable["name"] == "HOME"
    )
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    mounts = {
        mount["mountPath"]: mount
        for mount in container["volumeMounts"]
        if not mount.get("readOnly")
    }
    assert "emptyDir" in volumes[mounts[home_dir]["name"]]
    assert {"/tmp", home_dir} <= set(mounts)


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_only_jobs_of_a_release_may_patch_services_and_clusters(name: str) -> None:
    """The operator gives heads a role of their own for the autoscaler."""
    documents = environment(name)
    (binding,) = of_kind(documents, "RoleBinding")
    (role,) = of_kind(documents, "Role")
    account = {"kind": "ServiceAccount", "name": "release", "namespace": f"tailorbird-{name}"}
    assert binding["subjects"] == [account]
    assert binding["roleRef"]["kind"] == "Role"
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    rule = {"apiGroups": ["ray.io"], "resources": ["rayservices"], "verbs": ["get", "patch"]}
    assert role["rules"] == [rule]
    for pod in pods_of(documents):
        if pod.spec.get("serviceAccountName") == "release":
            assert pod.labels["tailorbird.io/role"] == "client"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_accounts_mount_no_token_and_only_training_and_release_write_the_registry(
    name: str,
) -> None:
    documents = environment(name)
    accounts = {
        account["metadata"]["name"]: account for account in of_kind(documents, "ServiceAccount")
    }
    assert all(account["automountServiceAccountToken"] is False for account in accounts.values())
    expected = {"store": None, "client": "release"}
    expected |= dict.fromkeys(("preflight", "shared", "watch"), "training")
    for pod in pods_of(documents):
        role = pod.labels["tailorbird.io/role"]
        account = pod.spec.get("serviceAccountName")
        assert account == expected.get(role, role)
        assert account is None or account in accounts
    writers = [
        name
        for name, account in accounts.items()
        if "writes the registry" in account["metadata"]["annotations"]["tailorbird.io/s3"]
    ]
    assert sorted(writers) == ["release", "training"]


@pytest.mark.parametrize("part", PARTS)
def test_manifests_contain_references_to_secrets_but_no_secrets(part: str) -> None:
    documents = build(part)
    assert not of_kind(documents, "Secret")
    for pod in pods_of(documents):
        for container in pod.containers:
            for variable in container.get("env", []):
                if SECRET_NAME.search(variable["name"]):
                    assert set(variable["valueFrom"]) == {"secretKeyRef"}, variable["name"]
    for settings in of_kind(documents, "ConfigMap"):
        assert not [key for key in settings["data"] if SECRET_NAME.search(key)]
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|tb_[A-Za-z0-9_-]{20}|BEGIN [A-Z ]*PRIVATE KEY", text_of(part)
    )


def test_the_example_lists_all_secrets_of_production_and_is_not_applied() -> None:
    examples = list(yaml.safe_load_all((K8S / "examples" / "secrets.yaml").read_text()))
    named = {
        (example["metadata"]["name"], key["secretKey"])
        for example in examples
        for key in example["spec"]["data"]
    }
    assert _secrets_named(environment("prod")) == named
    assert not [path for path in K8S.rglob("kustomization.yaml") if "examples" in path.read_text()]


def _secrets_named(value: Any) -> set[tuple[str, str]]:
    named: set[tuple[str, str]] = set()
    if isinstance(value, dict):
        if "secretKeyRef" in value:
            named.add((value["secretKeyRef"]["name"], value["secretKeyRef"]["key"]))
        if value.get("mode") == "token" and "secretName" in value:
            named.add((value["secretName"], "auth_token"))
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            named |= _secrets_named(inner)
    return named


@pytest.mark.parametrize("name", ENVIRONMENTS)
@pytest.mark.parametrize("account", ["serving", "training"])
def test_all_pods_and_an_upgrade_of_the_service_fit_the_quota_of_their_class(
    name: str, account: str
) -> None:
    documents = environment(name)
    quota = quota_of(documents, account)
    priority = f"tailorbird-{account}"
    scope = {"scopeName": "PriorityClass", "operator": "In", "values": [priority]}
    assert quota["scopeSelector"]["matchExpressions"] == [scope]
    taken: Counter[str] = Counter()
    for document in documents:
        for pod in pods_of([document]):
            if pod.spec["priorityClassName"] != priority:
                continue
            times = AT_ONCE.get(document["kind"], 1) * pod.most
            taken["pods"] += times
            for container, kind, what in product(
                pod.spec["containers"], ("requests", "limits"), ("cpu", "memory", "nvidia.com/gpu")
            ):
                size = amount(container["resources"][kind].get(what, "0"))
                taken[f"{kind}.{what}"] += times * size  # type: ignore[assignment]
    hard = quota["hard"]
    assert {*CHECKED, "pods", "requests.nvidia.com/gpu"} == set(hard)
    for what, most in hard.items():
        assert taken[what] <= amount(most), what


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_pod_without_a_class_of_ours_has_a_small_quota(name: str) -> None:
    quota = quota_of(environment(name), "other")
    (scope,) = quota["scopeSelector"]["matchExpressions"]
    assert (scope["operator"], set(scope["values"])) == ("NotIn", PRIORITIES)
    assert amount(quota["hard"]["limits.cpu"]) <= 4


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_disruption_budget_selects_enough_existing_pods(name: str) -> None:
    documents = environment(name)
    pods = pods_of(documents)
    budgets = of_kind(documents, "PodDisruptionBudget")
    assert {budget["metadata"]["name"] for budget in budgets} == {
        "dev": set(),
        "staging": {"serving-head"},  # its only replica may be interrupted
        "prod": {"serving-workers"},  # Redis stores the head's state
        "onprem": {"serving-workers"},
    }[name]
    for budget in budgets:
        spec = budget["spec"]
        # Kubernetes accepts only a number here if the owner has no subresource `scale`.
        assert set(spec) == {"minAvailable", "selector", "unhealthyPodEvictionPolicy"}
        assert isinstance(spec["minAvailable"], int)
        # Serve runs no proxy on a node without replicas, so its pod is not ready, and would never
        # be evicted otherwise.
        assert spec["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        guarded = [
            pod
            for pod in pods
            if all(pod.labels.get(k) == v for k, v in spec["selector"]["matchLabels"].items())
        ]
        assert guarded
        assert {pod.labels["tailorbird.io/role"] for pod in guarded} == {"serving"}
        assert spec["minAvailable"] <= sum(pod.most for pod in guarded)
        for service in of_kind(documents, "RayService"):
            (workers,) = cluster_of(service)["workerGroupSpecs"]
            if budget["metadata"]["name"] == "serving-workers":  # one may be drained
                assert workers["minReplicas"] > spec["minAvailable"]


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_pods_that_must_not_be_moved_are_kept_by_both_autoscalers_of_nodes(name: str) -> None:
    """A run's head and workers, and Jobs that are not retried. Spot nodes are lost anyway."""
    staying = []
    for pod in pods_of(environment(name)):
        is_spot = pod.spec.get("nodeSelector", {}).get("tailorbird.io/pool") == "gpu-spot"
        if pod.labels["tailorbird.io/role"] in ("training", "client", "watch") and not is_spot:
            staying.append(pod)
    assert staying
    for pod in staying:
        assert pod.annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
        assert pod.annotations["karpenter.sh/do-not-disrupt"] == "true"


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_a_job_ends_although_its_pod_cannot_start_and_a_volume_names_its_storage_class(
    name: str,
) -> None:
    documents = environment(name)
    for job in of_kind(documents, "Job"):
        assert job["spec"]["activeDeadlineSeconds"] > 0
    for job in of_kind(documents, "CronJob"):  # a watch ends before the next one
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        assert 0 < job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] < 24 * 60 * 60
    # Without a class, and without a default one, the volume of Redis stays Pending, and the head
    # never starts.
    for store in of_kind(documents, "StatefulSet"):
        for claim in store["spec"]["volumeClaimTemplates"]:
            assert claim["spec"]["storageClassName"]


@pytest.mark.parametrize(
    "name", ["dev", "staging", "prod"]
)  # accounts without a cloud have credentials in secrets
def test_every_account_has_a_role_of_its_environment(name: str) -> None:
    accounts = of_kind(environment(name), "ServiceAccount")
    roles = [
        account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"] for account in accounts
    ]
    assert all(f"role/tailorbird-{name}-" in role for role in roles)
    assert len(set(roles)) == len(accounts) > 0


def test_the_namespaces_of_the_operator_are_created_with_the_labels_of_the_overlays() -> None:
    created = list(yaml.safe_load_all((K8S / "operator" / "namespaces.yaml").read_text()))
    values = yaml.safe_load((K8S / "operator" / "values.yaml").read_text())
    assert [namespace["metadata"]["name"] for namespace in created] == values["watchNamespace"]
    assert created == [
        namespace for name in ENVIRONMENTS for namespace in of_kind(build(name), "Namespace")
    ]


@pytest.mark.parametrize("part", ["staging/service", "prod/service"])
def test_a_serving_worker_drains_longer_than_a_replica_needs_to_finish(part: str) -> None:
    """Ray stops a replica at the start of the drain, before another has started, if it may need
    more time than that."""
    workers = [
        pod for pod in pods_of(build(part)) if pod.labels.get("ray.io/node-type") == "worker"
    ]
    assert workers
    for pod in workers:
        env = {variable["name"]: variable["value"] for variable in pod.spec["containers"][0]["env"]}
        drains_s = float(env["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
        assert (
            max(task.shutdown_s for task in SERVED_TASKS.values())
            < drains_s
            < pod.spec["terminationGracePeriodSeconds"]
        )


@pytest.mark.parametrize("part", [part for part in PARTS if of_kind(build(part), *CLUSTER_SPEC)])
def test_a_ray_pod_has_time_to_drain_and_volumes_for_cache_and_journal(part: str) -> None:
    documents = build(part)
    (settings,) = (
        config_map["data"]
        for config_map in of_kind(documents, "ConfigMap")
        if "ray-settings" in config_map["metadata"]["name"]
    )
    for pod in pods_of(documents):
        if "ray.io/is-ray-node" not in pod.labels:
            continue
        assert pod.spec["terminationGracePeriodSeconds"] >= 120
        mounts = {mount["mountPath"] for mount in pod.spec["containers"][0]["volumeMounts"]}
        assert settings["TAILORBIRD_CACHE"] in mounts
        if pod.labels["tailorbird.io/role"] in ("serving", "shared"):
            assert settings["TAILORBIRD_JOURNAL"].rpartition("/")[0] in mounts
        assert not any(
            "livenessProbe" in container or "readinessProbe" in container
            for container in pod.containers
        )  # the operator adds its own
