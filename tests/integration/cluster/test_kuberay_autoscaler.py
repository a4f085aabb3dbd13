"""KubeRay's autoscaler with a fake kubelet adds nodes for pending work and removes them
afterwards."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import yaml

from cluster.connection import connect
from cluster.local.stack import StackState
from tailorbird import storage
from tailorbird.config.training import TrainingConfig
from tailorbird.config.tuning import TuningConfig
from tests.integration.cluster.fake_kubernetes import FakeKubernetes, serving
from tests.integration.machines import Machines, report_figure, wait
from tests.integration.small import REGISTRY, ROOT
from tests.integration.training.test_sweep import RATES
from tests.integration.training.test_training import training_task
from training.trainer import finetune
from tuning.sweep import sweep

pytestmark = pytest.mark.long

K8S = ROOT / "k8s"
GPU_GROUP = "gpu-spot"
IDLE_S = 10
"""Idle time of a node. The manifest has minutes, which are too long for a test."""
SECTION = TrainingConfig(
    method="lora",
    num_workers=2,
    cpus_per_worker=3,  # a pod has four
    epochs=1,
    batch_size=16,
)

ALONE = SECTION.model_copy(update={"num_workers": 1})


def manifest() -> dict[str, Any]:
    """Return the RayCluster of k8s/base with the worker group that the component spot-gpu adds to a
    RayJob."""
    manifest: dict[str, Any] = yaml.safe_load((K8S / "base/cluster/raycluster.yaml").read_text())
    added = yaml.safe_load((K8S / "components/spot-gpu/rayjob.yaml").read_text())[-1]["value"]
    manifest["spec"]["workerGroupSpecs"].append(added)
    manifest["spec"]["autoscalerOptions"]["idleTimeoutSeconds"] = IDLE_S
    manifest["metadata"]["namespace"] = "tailorbird"  # set by overlays
    return manifest


@pytest.fixture(scope="module")
def kubernetes(
    stack: StackState, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FakeKubernetes]:
    """Yield a cluster that has a head and an autoscaler, but no workers."""
    assert stack.s3_endpoint
    folder = tmp_path_factory.mktemp("kubernetes")
    machines = Machines(folder, environment={"AUTOSCALER_UPDATE_INTERVAL_S": "1"})
    try:
        fake = FakeKubernetes(manifest(), machines=machines)
        with serving(fake, folder) as environment, machines.used():
            named = (f"--cluster-name={fake.name}", f"--cluster-namespace={fake.namespace}")
            machines.program(
                *("autoscaler", "kuberay-autoscaler", *named, f"--gcs-address={machines.address}"),
                environment=environment,
            )
            yield fake
    finally:
        machines.stop()


def node_type() -> str:
    return os.environ["RAY_NODE_TYPE_NAME"]


def max_pods(fake: FakeKubernetes, group: str) -> int:
    """Return the largest number of pods that a group had."""
    return max((num for _, name, num in fake.history if name == group), default=0)


def test_a_training_gets_nodes_for_its_workers_and_they_are_removed_afterwards(
    kubernetes: FakeKubernetes, small_data: str
) -> None:
    task = training_task(small_data, num_rows=64)
    with connect():
        assert ray.cluster_resources().get("CPU", 0) == 0
        at = time.monotonic()
        trained = finetune(SECTION, task=task, uri=f"{REGISTRY}/autoscaled")
    report_figure("up_s", [(moment - at, num) for moment, _, num in kubernetes.history])
    report_figure("trained_s", time.monotonic() - at)
    assert storage.exists(f"{trained.weights}/head.safetensors")
    assert max_pods(kubernetes, "cpu") == SECTION.max_workers
    report_figure("down_s", wait(lambda: not kubernetes.of("cpu"), within_s=180))
    assert kubernetes.manifest["spec"]["workerGroupSpecs"][0]["replicas"] == 0
    assert max_pods(kubernetes, GPU_GROUP) == 0


def test_a_sweep_gets_a_node_for_each_concurrent_trial_and_they_are_removed_afterwards(
    kubernetes: FakeKubernetes, small_data: str
) -> None:
    task = training_task(small_data, num_rows=64)
    at_once = 2
    config = TuningConfig(num_trials=3, space=RATES, max_concurrent_trials=at_once)
    with connect():
        at = time.monotonic()
        result = sweep(
            config,
            training=ALONE,
            tasks={"base": task},
            baselines={},
            uri=f"{REGISTRY}/autoscaled-sweep",
        )
    report_figure("swept_s", time.monotonic() - at)
    report_figure(
        "pods", [(moment - at, num) for moment, _, num in kubernetes.history if moment > at]
    )
    assert len([row for row in result.rows if row.status == "completed"]) == config.num_trials
    assert storage.exists(f"{result.trained.weights}/head.safetensors")
    begun = [moment for moment, _, num in kubernetes.history if moment > at and num == at_once]
    assert begun, "no node was added for the second trial"
    report_figure("down_s", wait(lambda: not kubernetes.of("cpu"), within_s=180))


def test_a_task_that_needs_a_gpu_gets_a_node_of_the_gpu_group(kubernetes: FakeKubernetes) -> None:
    with connect():
        node_type_ref = ray.remote(num_gpus=1)(node_type).remote()
        report_figure(
            "up_s", wait(lambda: bool(ray.wait([node_type_ref], timeout=0)[0]), within_s=180)
        )
        assert ray.get(node_type_ref) == GPU_GROUP
    report_figure("down_s", wait(lambda: not kubernetes.of(GPU_GROUP), within_s=180))
