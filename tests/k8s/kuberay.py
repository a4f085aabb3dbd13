"""The validation rules of KubeRay's operator 1.7 that are not in its schema, with beta gates on and
alpha gates off.

The messages are not the operator's.
"""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml
from packaging.version import InvalidVersion, Version

Document = dict[str, Any]

DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?")
LABEL_NAME = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")
DURATION = re.compile(r"(\d+(\.\d+)?(ns|us|ms|s|m|h))+")
MAX_CLUSTER_NAME = 53
MAX_OWNER_NAME = MAX_CLUSTER_NAME - 6
V2 = "RAY_enable_autoscaler_v2"
DELETION_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def faults(document: Document) -> list[str]:
    """Return the reasons why the operator would refuse the resource."""
    metadata, spec = document["metadata"], document["spec"]
    annotations = metadata.get("annotations", {})
    kind = document["kind"]
    faults = [
        *_name(metadata["name"], MAX_CLUSTER_NAME if kind == "RayCluster" else MAX_OWNER_NAME)
    ]
    if kind == "RayCluster":
        faults += [*_cluster(spec, annotations), *_upgrade(spec, allowed=("Recreate", "None"))]
    elif kind == "RayService":
        faults += _service(spec, annotations)
    else:
        faults += _job(spec, annotations)
    return faults


def _name(name: str, most: int) -> Iterator[str]:
    if len(name) > most:
        yield f"the name has more than {most} characters"
    if not DNS_LABEL.fullmatch(name) or len(name) > 63:
        yield "the name is not a DNS label that begins with a letter"


def _cluster(spec: Document, annotations: Document) -> Iterator[str]:
    head = spec["headGroupSpec"]
    pod = head["template"]["spec"]
    if not pod.get("containers"):
        yield "the head has no container"
        return
    yield from _group("head", head)
    scales = bool(spec.get("enableInTreeAutoscaling"))
    for group in spec.get("workerGroupSpecs", []):
        yield from _workers(group, spec=spec, scales=scales)
    container = pod["containers"][0]
    yield from _fault_tolerance(spec, head, container, annotations)
    env = _env(container)
    options = spec.get("autoscalerOptions", {})
    if not scales and env.get(V2) in ("1", "true"):
        yield "autoscaler v2 is enabled by an environment variable, but autoscaling is disabled"
    if scales and "version" in options and V2 in env:
        yield "autoscaler v2 is enabled twice: by version and by environment variable"
    if scales and options.get("version") == "v2" and pod.get("restartPolicy", "Never") != "Never":
        yield "autoscaler v2: the head's restartPolicy is not Never"
    if options.get("idleTimeoutSeconds", 0) < 0:
        yield "idleTimeoutSeconds is negative"
    if "KUBERAY_GEN_AUTOSCALER_START_CMD" in {
        variable["name"] for variable in options.get("env", [])
    }:
        yield "the autoscaler's start command is reserved for the operator"
    for field in ("historyServerOptions", "networkPolicy", "tlsOptions"):
        if field in spec:
            yield f"{field} is behind an alpha gate"
    yield from _authentication(spec)


def _group(name: str, group: Document) -> Iterator[str]:
    parameters = group.get("rayStartParams", {})
    if group.get("resources") and {"num-cpus", "num-gpus", "memory", "resources"} & set(parameters):
        yield f"{name}: resources are set in rayStartParams and in resources"
    if "labels" in parameters:
        yield f"{name}: labels are set in rayStartParams"
    for key, value in group.get("labels", {}).items():
        prefix, _, own = key.rpartition("/")
        if not LABEL_NAME.fullmatch(own) or len(own) > 63 or len(prefix) > 253:
            yield f"{name}: {key!r} is not a label key"
        if not LABEL_VALUE.fullmatch(value) or len(value) > 63:
            yield f"{name}: {value!r} is not a label value"


def _workers(group: Document, *, spec: Document, scales: bool) -> Iterator[str]:
    name = group.get("groupName", "")
    pod = group["template"]["spec"]
    if not pod.get("containers"):
        yield f"{name}: no container"
        return
    fewest, most = group.get("minReplicas"), group.get("maxReplicas")
    if not scales and (fewest is None or most is None):
        yield f"{name}: minReplicas and maxReplicas must be set without autoscaling"
    for field in ("minReplicas", "maxReplicas", "idleTimeoutSeconds"):
        if group.get(field, 0) < 0:
            yield f"{name}: {field} is negative"
    if fewest is not None and most is not None and fewest > most:
        yield f"{name}: minReplicas is above maxReplicas"
    yield from _group(name, group)
    version = spec.get("autoscalerOptions", {}).get("version")
    head_env = _env(spec["headGroupSpec"]["template"]["spec"]["containers"][0])
    second = (scales and version == "v2") or head_env.get(V2) in ("1", "true")
    if "idleTimeoutSeconds" in group and not second:
        yield f"{name}: idleTimeoutSeconds requires autoscaler v2"
    if group.get("priority"):
        if not _at_least(spec.get("rayVersion", ""), "2.56.0"):
            yield f"{name}: priority requires Ray 2.56"
        if not second:
            yield f"{name}: priority requires autoscaler v2"
    if scales and group.get("suspend"):
        yield f"{name}: cannot be suspended with autoscaling"
    if scales and version == "v2" and pod.get("restartPolicy", "Never") != "Never":
        yield f"{name}: autoscaler v2: restartPolicy is not Never"


def _fault_tolerance(
    spec: Document, head: Document, container: Document, annotations: Document
) -> Iterator[str]:
    """Check the GCS fault tolerance."""
    env, parameters, options = (
        _env(container),
        head.get("rayStartParams", {}),
        spec.get("gcsFaultToleranceOptions"),
    )
    by_annotation = annotations.get("ray.io/ft-enabled")
    if by_annotation and options is not None:
        yield "fault tolerance is enabled by annotation and by options"
    if options is None and by_annotation != "true" and "RAY_REDIS_ADDRESS" in env:
        yield "RAY_REDIS_ADDRESS is set without gcsFaultToleranceOptions"
    if options is not None:
        if parameters.get("redis-password"):
            yield "redis-password is set in rayStartParams"
        for name in ("REDIS_PASSWORD", "RAY_REDIS_ADDRESS"):
            if name in env:
                yield f"{name} is set in the head's environment"
        if annotations.get("ray.io/external-storage-namespace"):
            yield "the storage namespace is set in an annotation"
        if options.get("backend", "redis") == "rocksdb":
            yield "the backend rocksdb is behind an alpha gate"
        elif "storage" in options:
            yield "storage is for the backend rocksdb"
    if parameters.get("redis-username") or "REDIS_USERNAME" in env:
        yield "the Redis user is set outside of gcsFaultToleranceOptions"


def _authentication(spec: Document) -> Iterator[str]:
    options, version = spec.get("authOptions", {}), spec.get("rayVersion", "")
    by_kubernetes = bool(options.get("enableK8sTokenAuth"))
    if options.get("mode") != "token":
        if by_kubernetes:
            yield "Kubernetes tokens require the mode token"
        return
    if not _at_least(version, "2.52.0"):
        yield f"the mode token requires Ray 2.52, not {version!r}"
    if by_kubernetes and not _at_least(version, "2.55.0"):
        yield f"Kubernetes tokens require Ray 2.55, not {version!r}"
    if by_kubernetes and options.get("secretName"):
        yield "Kubernetes tokens and a secret are both set"


def _upgrade(spec: Document, *, allowed: tuple[str, ...]) -> Iterator[str]:
    kind = spec.get("upgradeStrategy", {}).get("type")
    if kind is not None and kind not in allowed:
        yield f"upgradeStrategy.type is not one of {', '.join(allowed)}"


def _service(spec: Document, annotations: Document) -> Iterator[str]:
    cluster = spec["rayClusterConfig"]
    if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
        yield "a RayService does not support Kubernetes tokens"
    yield from _cluster(cluster, annotations)
    timeout = annotations.get("ray.io/initializing-timeout", "")
    if timeout and not (DURATION.fullmatch(timeout) or timeout.isdecimal()):
        yield "initializing-timeout is not a duration"
    elif timeout and not any(char in "123456789" for char in timeout):
        yield "initializing-timeout is not positive"
    if cluster["headGroupSpec"].get("headService", {}).get("metadata", {}).get("name"):
        yield "the head's service must not be named"
    yield from _upgrade(spec, allowed=("NewClusterWithIncrementalUpgrade", "NewCluster", "None"))
    if spec.get("rayClusterDeletionDelaySeconds", 0) < 0:
        yield "rayClusterDeletionDelaySeconds is negative"
    if spec.get("upgradeStrategy", {}).get("type") == "NewClusterWithIncrementalUpgrade":
        yield from _incremental_upgrade(spec, cluster)
    containers = cluster["headGroupSpec"]["template"]["spec"]["containers"][:1]
    names = [
        port.get("name", "") for container in containers for port in container.get("ports", [])
    ]
    if "serveService" not in spec and not any(
        name == "serve" or name.startswith("serve-") for name in names
    ):
        yield "the head has no port named serve, so it would have no service"


def _incremental_upgrade(spec: Document, cluster: Document) -> Iterator[str]:
    if not cluster.get("enableInTreeAutoscaling"):
        yield "an incremental upgrade requires the autoscaler"
    options = spec["upgradeStrategy"].get("clusterUpgradeOptions")
    if options is None:
        yield "an incremental upgrade requires clusterUpgradeOptions"
        return
    surge, step = options.get("maxSurgePercent", 100), options.get("stepSizePercent")
    if not 0 <= surge <= 100:
        yield "maxSurgePercent is not a percentage"
    if step is None or not 0 <= step <= 100:
        yield "stepSizePercent is not a percentage"
    elif step > surge:
        yield "stepSizePercent is above maxSurgePercent"
    if options.get("intervalSeconds") is None or options["intervalSeconds"] <= 0:
        yield "intervalSeconds is not positive"
    if not options.get("gatewayClassName"):
        yield "gatewayClassName is missing"


def _job(spec: Document, annotations: Document) -> Iterator[str]:
    shuts_down = bool(spec.get("shutdownAfterJobFinishes"))
    cluster, selector, mode = (
        spec.get("rayClusterSpec"),
        spec.get("clusterSelector"),
        spec.get("submissionMode"),
    )
    if spec.get("suspend") and not shuts_down:
        yield "suspend requires shutdownAfterJobFinishes"
    if spec.get("ttlSecondsAfterFinished", 0) < 0:
        yield "ttlSecondsAfterFinished is negative"
    if spec.get("ttlSecondsAfterFinished", 0) > 0 and not shuts_down:
        yield "ttlSecondsAfterFinished requires shutdownAfterJobFinishes"
    if spec.get("deletionStrategy") is not None:
        yield from _deletion(spec)
    if cluster is None and not selector:
        yield "neither rayClusterSpec nor clusterSelector is set"
    if selector:
        yield from _existing_cluster(spec, selector)
    if mode == "InteractiveMode" and spec.get("backoffLimit", 0) > 0:
        yield "InteractiveMode does not support backoffLimit"
    if mode == "SidecarMode":
        for field in ("submitterPodTemplate", "submitterConfig"):
            if field in spec:
                yield f"SidecarMode does not support {field}"
        if (
            cluster
            and cluster["headGroupSpec"]["template"]["spec"].get("restartPolicy", "Never")
            != "Never"
        ):
            yield "SidecarMode: the head's restartPolicy is not Never"
    if cluster is not None:
        if cluster.get("authOptions", {}).get("enableK8sTokenAuth"):
            yield "a RayJob does not support Kubernetes tokens"
        yield from _cluster(cluster, annotations)
    try:
        if not isinstance(yaml.safe_load(spec.get("runtimeEnvYAML", "{}")), dict):
            yield "runtimeEnvYAML is not a mapping"
    except yaml.YAMLError:
        yield "runtimeEnvYAML is not YAML"
    for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(field, 1) <= 0:
            yield f"{field} is not positive"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit is negative"


def _existing_cluster(spec: Document, selector: Document) -> Iterator[str]:
    if spec.get("suspend"):
        yield "clusterSelector does not support suspend"
    if not selector.get("ray.io/cluster"):
        yield "clusterSelector has no cluster"
    if spec.get("submissionMode") == "SidecarMode":
        yield "clusterSelector does not support SidecarMode"
    if spec.get("backoffLimit", 0) > 0:
        yield "clusterSelector does not support backoffLimit"


def _deletion(spec: Document) -> Iterator[str]:
    strategy = spec["deletionStrategy"]
    rules = strategy.get("deletionRules", [])
    legacy = [strategy[name] for name in ("onSuccess", "onFailure") if name in strategy]
    if rules and spec.get("shutdownAfterJobFinishes"):
        yield "deletionRules and shutdownAfterJobFinishes are mutually exclusive"
    if rules and legacy:
        yield "deletionRules exclude onSuccess and onFailure"
    elif legacy:
        yield from _legacy_deletion(spec, legacy)
    elif rules:
        yield from _deletion_rules(spec, rules)
    else:
        yield "deletionStrategy is empty"


def _legacy_deletion(spec: Document, legacy: list[Document]) -> Iterator[str]:
    policies = {rule.get("policy") for rule in legacy}
    if len(legacy) < 2 or None in policies:
        yield "onSuccess and onFailure must both have a policy"
    if spec.get("clusterSelector") and policies & {"DeleteCluster", "DeleteWorkers"}:
        yield "onSuccess and onFailure must not delete a selected cluster"
    if "DeleteWorkers" in policies and _scales(spec):
        yield "DeleteWorkers is incompatible with the autoscaler"
    if spec.get("shutdownAfterJobFinishes") and "DeleteNone" in policies:
        yield "DeleteNone and shutdownAfterJobFinishes are mutually exclusive"


def _deletion_rules(spec: Document, rules: list[Document]) -> Iterator[str]:
    known: dict[tuple[str, str], dict[str, int]] = {}
    for rule in rules:
        policy, condition = rule["policy"], rule["condition"]
        named = [
            (name, condition[name])
            for name in ("jobStatus", "jobDeploymentStatus")
            if condition.get(name)
        ]
        if len(named) != 1:
            yield "a condition must have exactly one of jobStatus and jobDeploymentStatus"
            continue
        ttl = condition.get("ttlSeconds", 0)
        if ttl < 0:
            yield "ttlSeconds is negative"
        if spec.get("clusterSelector") and policy in ("DeleteCluster", "DeleteWorkers"):
            yield "deletionRules must not delete a selected cluster"
        if policy == "DeleteWorkers" and _scales(spec):
            yield "DeleteWorkers is incompatible with the autoscaler"
        known.setdefault(named[0], {}).setdefault(policy, ttl)
    named_twice = Counter(
        (rule["policy"], str(sorted(rule["condition"].items())[0])) for rule in rules
    )
    if any(count > 1 for count in named_twice.values()):
        yield "two rules have the same policy and status"
    for ttls in known.values():
        ordered = [ttls[policy] for policy in DELETION_ORDER if policy in ttls]
        if ordered != sorted(ordered):
            yield "workers must be deleted before the cluster, and the cluster before the resource"


def _scales(spec: Document) -> bool:
    return bool((spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"))


def _env(container: Document) -> dict[str, str]:
    return {variable["name"]: variable.get("value", "") for variable in container.get("env", [])}


def _at_least(version: str, least: str) -> bool:
    try:
        return Version(version) >= Version(least)
    except InvalidVersion:
        return False
