"""The manifests break no rule of the operator, and a broken rule is detected."""

from typing import Any

import pytest
import yaml

from tests.k8s.kuberay import faults
from tests.k8s.manifests import CLUSTER_SPEC, K8S, PARTS, build, of_kind, put

RAY_PARTS = [part for part in PARTS if of_kind(build(part), *CLUSTER_SPEC)]
SOURCE = {"RayCluster": "dev", "RayService": "prod/service", "RayJob": "prod/job"}
HEAD, WORKERS = "headGroupSpec.template.spec", "workerGroupSpecs.0"
ENV = f"{HEAD}.containers.0.env"
STEPS = {
    "maxSurgePercent": 50,
    "stepSizePercent": 10,
    "intervalSeconds": 5,
    "gatewayClassName": "istio",
}
INCREMENTAL = "spec.upgradeStrategy.type", "NewClusterWithIncrementalUpgrade"
V2 = "RAY_enable_autoscaler_v2"
END = ("onSuccess", "onFailure")


@pytest.mark.parametrize("part", RAY_PARTS)
def test_the_operator_accepts_every_overlay(part: str) -> None:
    for document in of_kind(build(part), *CLUSTER_SPEC):
        assert faults(document) == []


def env(name: str, value: str = "x") -> list[dict[str, str]]:
    return [{"name": name, "value": value}]


def rule(policy: str, status: str, ttl: int = 0) -> dict[str, Any]:
    return {"policy": policy, "condition": {"jobStatus": status, "ttlSeconds": ttl}}


# A change of a cluster's specification, and the expected message.
CLUSTER_FAULTS: list[tuple[dict[str, Any], str]] = [
    ({f"{HEAD}.containers": []}, "the head has no container"),
    ({"headGroupSpec.resources": {"CPU": "1"}}, "head: resources are set in rayStartParams"),
    ({"headGroupSpec.rayStartParams.labels": "a=b"}, "head: labels are set in rayStartParams"),
    ({"headGroupSpec.labels": {"-a": "b"}}, "not a label key"),
    ({f"{WORKERS}.labels": {"a": "b/"}}, "not a label value"),
    ({f"{WORKERS}.template.spec.containers": []}, "cpu: no container"),
    (
        {"enableInTreeAutoscaling": False, f"{WORKERS}.minReplicas": None},
        "must be set without autoscaling",
    ),
    ({f"{WORKERS}.minReplicas": -1}, "minReplicas is negative"),
    ({f"{WORKERS}.maxReplicas": -1, f"{WORKERS}.minReplicas": -2}, "maxReplicas is negative"),
    ({f"{WORKERS}.minReplicas": 9}, "minReplicas is above maxReplicas"),
    (
        {f"{WORKERS}.rayStartParams": {"num-cpus": "1"}, f"{WORKERS}.resources": {"CPU": "1"}},
        "cpu: resources are set",
    ),
    ({f"{WORKERS}.rayStartParams": {"labels": "a=b"}}, "cpu: labels are set"),
    ({f"{WORKERS}.idleTimeoutSeconds": -1}, "idleTimeoutSeconds is negative"),
    (
        {f"{WORKERS}.idleTimeoutSeconds": 9, "autoscalerOptions.version": "v1"},
        "idleTimeoutSeconds requires autoscaler v2",
    ),
    ({f"{WORKERS}.priority": 1, "rayVersion": "2.55.0"}, "priority requires Ray 2.56"),
    (
        {f"{WORKERS}.priority": 1, "autoscalerOptions.version": "v1"},
        "priority requires autoscaler v2",
    ),
    ({f"{WORKERS}.suspend": True}, "cannot be suspended"),
    ({f"{WORKERS}.template.spec.restartPolicy": "Always"}, "cpu: autoscaler v2: restartPolicy"),
    ({f"{HEAD}.restartPolicy": "Always"}, "the head's restartPolicy is not Never"),
    ({"autoscalerOptions.idleTimeoutSeconds": -1}, "idleTimeoutSeconds is negative"),
    (
        {"autoscalerOptions.env": env("KUBERAY_GEN_AUTOSCALER_START_CMD")},
        "start command is reserved for the operator",
    ),
    ({"enableInTreeAutoscaling": False, ENV: env(V2, "true")}, "but autoscaling is disabled"),
    ({ENV: env(V2, "true")}, "enabled twice"),
    (
        {"gcsFaultToleranceOptions": None, ENV: env("RAY_REDIS_ADDRESS")},
        "without gcsFaultToleranceOptions",
    ),
    (
        {"headGroupSpec.rayStartParams.redis-password": "x"},
        "redis-password is set in rayStartParams",
    ),
    ({ENV: env("REDIS_PASSWORD")}, "REDIS_PASSWORD is set in the head's environment"),
    ({ENV: env("RAY_REDIS_ADDRESS")}, "RAY_REDIS_ADDRESS is set in the head's environment"),
    ({"gcsFaultToleranceOptions.backend": "rocksdb"}, "rocksdb is behind an alpha gate"),
    ({"gcsFaultToleranceOptions.storage": {"size": "1Gi"}}, "storage is for the backend rocksdb"),
    ({"headGroupSpec.rayStartParams.redis-username": "x"}, "the Redis user"),
    ({ENV: env("REDIS_USERNAME")}, "the Redis user"),
    ({"historyServerOptions": {}}, "historyServerOptions is behind an alpha gate"),
    ({"networkPolicy": {}}, "networkPolicy is behind an alpha gate"),
    ({"tlsOptions": {}}, "tlsOptions is behind an alpha gate"),
    ({"rayVersion": None}, "requires Ray 2.52, not ''"),
    ({"rayVersion": "nightly"}, "requires Ray 2.52, not 'nightly'"),
    ({"rayVersion": "2.51.1"}, "requires Ray 2.52, not '2.51.1'"),
    ({"authOptions.enableK8sTokenAuth": True, "rayVersion": "2.54.0"}, "require Ray 2.55"),
    ({"authOptions.enableK8sTokenAuth": True}, "and a secret are both set"),
    (
        {"authOptions.enableK8sTokenAuth": True, "authOptions.mode": "disabled"},
        "require the mode token",
    ),
]
OWNER_FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("RayCluster", {"metadata.name": "a" * 54}, "more than 53"),
    ("RayCluster", {"metadata.name": "1a"}, "not a DNS label"),
    ("RayCluster", {"spec.upgradeStrategy.type": "NewCluster"}, "not one of Recreate, None"),
    ("RayService", {"metadata.name": "a" * 48}, "more than 47"),
    (
        "RayService",
        {"metadata.annotations.ray~io/ft-enabled": "true"},
        "by annotation and by options",
    ),
    (
        "RayService",
        {"metadata.annotations.ray~io/external-storage-namespace": "x"},
        "is set in an annotation",
    ),
    ("RayService", {"metadata.annotations.ray~io/initializing-timeout": "soon"}, "not a duration"),
    ("RayService", {"metadata.annotations.ray~io/initializing-timeout": "0m"}, "not positive"),
    (
        "RayService",
        {"spec.rayClusterConfig.authOptions.enableK8sTokenAuth": True},
        "a RayService does not support",
    ),
    (
        "RayService",
        {"spec.rayClusterConfig.headGroupSpec.headService.metadata.name": "x"},
        "must not be named",
    ),
    (
        "RayService",
        {"spec.rayClusterConfig.headGroupSpec.template.spec.containers.0.ports": []},
        "port named serve",
    ),
    (
        "RayService",
        {"spec.upgradeStrategy.type": "Recreate"},
        "not one of NewClusterWithIncrementalUpgrade",
    ),
    (
        "RayService",
        {"spec.rayClusterDeletionDelaySeconds": -1},
        "rayClusterDeletionDelaySeconds is negative",
    ),
    ("RayService", dict([INCREMENTAL]), "requires clusterUpgradeOptions"),
    *(
        (
            "RayService",
            dict([INCREMENTAL]) | {"spec.upgradeStrategy.clusterUpgradeOptions": STEPS | changed},
            message,
        )
        for changed, message in (
            ({"maxSurgePercent": 101}, "maxSurgePercent is not a percentage"),
            ({"stepSizePercent": -1}, "stepSizePercent is not a percentage"),
            ({"stepSizePercent": 60}, "above maxSurgePercent"),
            ({"intervalSeconds": 0}, "intervalSeconds is not positive"),
            ({"gatewayClassName": ""}, "gatewayClassName is missing"),
        )
    ),
    (
        "RayService",
        dict([INCREMENTAL])
        | {
            "spec.upgradeStrategy.clusterUpgradeOptions": STEPS,
            "spec.rayClusterConfig.enableInTreeAutoscaling": False,
        },
        "requires the autoscaler",
    ),
    ("RayJob", {"metadata.name": "a" * 48}, "more than 47"),
    (
        "RayJob",
        {"spec.suspend": True, "spec.shutdownAfterJobFinishes": False},
        "suspend requires shutdownAfterJobFinishes",
    ),
    ("RayJob", {"spec.ttlSecondsAfterFinished": -1}, "ttlSecondsAfterFinished is negative"),
    (
        "RayJob",
        {"spec.shutdownAfterJobFinishes": False},
        "ttlSecondsAfterFinished requires shutdownAfterJobFinishes",
    ),
    ("RayJob", {"spec.rayClusterSpec": None}, "neither rayClusterSpec nor clusterSelector"),
    (
        "RayJob",
        {"spec.clusterSelector": {"ray.io/cluster": "x"}, "spec.suspend": True},
        "does not support suspend",
    ),
    ("RayJob", {"spec.clusterSelector": {"other": "x"}}, "has no cluster"),
    (
        "RayJob",
        {"spec.clusterSelector": {"ray.io/cluster": "x"}},
        "clusterSelector does not support backoffLimit",
    ),
    (
        "RayJob",
        {"spec.clusterSelector": {"ray.io/cluster": "x"}, "spec.submissionMode": "SidecarMode"},
        "clusterSelector does not support SidecarMode",
    ),
    (
        "RayJob",
        {"spec.submissionMode": "InteractiveMode"},
        "InteractiveMode does not support backoffLimit",
    ),
    (
        "RayJob",
        {"spec.submissionMode": "SidecarMode", "spec.submitterPodTemplate": {}},
        "not support submitterPodTemplate",
    ),
    (
        "RayJob",
        {"spec.submissionMode": "SidecarMode", "spec.submitterConfig": {}},
        "not support submitterConfig",
    ),
    (
        "RayJob",
        {
            "spec.submissionMode": "SidecarMode",
            "spec.rayClusterSpec.headGroupSpec.template.spec.restartPolicy": "Always",
        },
        "SidecarMode: the head's restartPolicy",
    ),
    (
        "RayJob",
        {"spec.rayClusterSpec.authOptions.enableK8sTokenAuth": True},
        "a RayJob does not support",
    ),
    ("RayJob", {"spec.runtimeEnvYAML": "a: ["}, "runtimeEnvYAML is not YAML"),
    ("RayJob", {"spec.runtimeEnvYAML": "- a"}, "runtimeEnvYAML is not a mapping"),
    ("RayJob", {"spec.activeDeadlineSeconds": 0}, "activeDeadlineSeconds is not positive"),
    ("RayJob", {"spec.preRunningDeadlineSeconds": 0}, "preRunningDeadlineSeconds is not positive"),
    ("RayJob", {"spec.backoffLimit": -1}, "backoffLimit is negative"),
    ("RayJob", {"spec.deletionStrategy": {}}, "deletionStrategy is empty"),
    (
        "RayJob",
        {"spec.deletionStrategy.deletionRules": [rule("DeleteSelf", "FAILED")]},
        "deletionRules and shutdownAfterJobFinishes",
    ),
    (
        "RayJob",
        {
            "spec.deletionStrategy": {
                "deletionRules": [rule("DeleteSelf", "FAILED")],
                "onSuccess": {},
            }
        },
        "deletionRules exclude onSuccess",
    ),
    ("RayJob", {"spec.deletionStrategy.onSuccess.policy": "DeleteSelf"}, "must both have a policy"),
    *(
        (
            "RayJob",
            {"spec.clusterSelector": {"ray.io/cluster": "x"}}
            | {
                f"spec.deletionStrategy.{when}.policy": policy
                for when, policy in zip(END, policies, strict=True)
            },
            "onSuccess and onFailure must not delete a selected cluster",
        )
        for policies in (("DeleteCluster", "DeleteSelf"), ("DeleteSelf", "DeleteWorkers"))
    ),
    *(
        (
            "RayJob",
            {
                "spec.clusterSelector": {"ray.io/cluster": "x"},
                "spec.shutdownAfterJobFinishes": False,
                "spec.deletionStrategy.deletionRules": [
                    rule("DeleteSelf", "FAILED", 9),
                    rule(policy, "FAILED"),
                ],
            },
            "deletionRules must not delete a selected cluster",
        )
        for policy in ("DeleteCluster", "DeleteWorkers")
    ),
    (
        "RayJob",
        {
            "spec.deletionStrategy.onSuccess.policy": "DeleteWorkers",
            "spec.deletionStrategy.onFailure.policy": "DeleteSelf",
        },
        "DeleteWorkers is incompatible with the autoscaler",
    ),
    (
        "RayJob",
        {
            "spec.deletionStrategy.onSuccess.policy": "DeleteNone",
            "spec.deletionStrategy.onFailure.policy": "DeleteSelf",
        },
        "DeleteNone and shutdownAfterJobFinishes",
    ),
    *(
        (
            "RayJob",
            {"spec.shutdownAfterJobFinishes": False, "spec.deletionStrategy.deletionRules": rules},
            message,
        )
        for rules, message in (
            (
                [rule("DeleteWorkers", "FAILED")],
                "DeleteWorkers is incompatible with the autoscaler",
            ),
            ([rule("DeleteSelf", "FAILED", -1)], "ttlSeconds is negative"),
            (
                [rule("DeleteSelf", "FAILED"), rule("DeleteSelf", "FAILED", 5)],
                "two rules have the same policy",
            ),
            (
                [rule("DeleteSelf", "FAILED", 1), rule("DeleteCluster", "FAILED", 9)],
                "workers must be deleted before the cluster",
            ),
            (
                [{"policy": "DeleteSelf", "condition": {"ttlSeconds": 1}}],
                "exactly one of jobStatus",
            ),
        )
    ),
]


@pytest.mark.parametrize(
    ("changed", "message"), CLUSTER_FAULTS, ids=[message for _, message in CLUSTER_FAULTS]
)
def test_a_cluster_that_breaks_a_rule_is_detected(changed: dict[str, Any], message: str) -> None:
    require_fault(
        "RayService",
        {f"spec.rayClusterConfig.{path}": value for path, value in changed.items()},
        message,
    )


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    OWNER_FAULTS,
    ids=[f"{kind} {text}" for kind, _, text in OWNER_FAULTS],
)
def test_a_resource_that_breaks_a_rule_is_detected(
    kind: str, changed: dict[str, Any], message: str
) -> None:
    require_fault(kind, changed, message)


def require_fault(kind: str, changed: dict[str, Any], message: str) -> None:
    (document,) = of_kind(build(SOURCE[kind]), kind)
    for path, value in changed.items():
        put(document, path, value)
    reported = faults(document)
    assert any(message in fault for fault in reported), reported


def test_a_run_survives_an_unreachable_dashboard_until_a_new_head_can_answer() -> None:
    """After this time the operator fails the run and does not retry it. Its default is 300 s."""
    values = yaml.safe_load((K8S / "operator" / "values.yaml").read_text())
    env = {variable["name"]: variable["value"] for variable in values["env"]}
    (job,) = of_kind(build("prod/job"), "RayJob")
    assert (
        1800
        <= int(env["RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS"])
        < job["spec"]["activeDeadlineSeconds"]
    )
