"""The configuration that Ray's autoscaler derives from the clusters of each overlay."""

from typing import Any

import pytest
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)

from tests.k8s.manifests import CLUSTER_SPEC, build, cluster_of, of_kind

GIB = 2**30
CPU_WORKER = {"CPU": 4, "memory": 16 * GIB}
GPU_WORKER = {"CPU": 8, "GPU": 1, "memory": 48 * GIB}
# Memory of the head in GiB, idle minutes, and the groups: minimum pods, maximum pods, resources of
# a pod.
EXPECTED: dict[str, tuple[int, float, dict[str, tuple[int, int, dict[str, int]]]]] = {
    "dev": (16, 5.0, {"cpu": (0, 4, CPU_WORKER)}),
    "dev/job": (16, 2.0, {"cpu": (1, 1, CPU_WORKER)}),
    "staging/service": (8, 5.0, {"cpu": (1, 4, CPU_WORKER)}),
    "staging/job": (16, 2.0, {"cpu": (1, 1, CPU_WORKER)}),
    "prod/service": (8, 5.0, {"cpu": (2, 4, CPU_WORKER)}),
    "prod/job": (16, 2.0, {"cpu": (1, 1, CPU_WORKER), "gpu-spot": (0, 4, GPU_WORKER)}),
}


def autoscaling(cluster: dict[str, Any]) -> dict[str, Any]:
    resource = {"metadata": {"name": "any", "namespace": "any"}, "spec": cluster}
    derived: dict[str, Any] = _derive_autoscaling_config_from_ray_cr(resource)
    return derived


@pytest.mark.parametrize("part", EXPECTED)
def test_the_autoscaler_has_the_expected_groups_and_no_cpus_on_the_head(part: str) -> None:
    (document,) = of_kind(build(part), *CLUSTER_SPEC)
    derived = autoscaling(cluster_of(document))
    memory, idle_minutes, groups = EXPECTED[part]
    head = derived["available_node_types"].pop(derived["head_node_type"])
    assert head["resources"] == {"CPU": 0, "memory": memory * GIB}
    bounds = {
        name: (node_type["min_workers"], node_type["max_workers"], node_type["resources"])
        for name, node_type in derived["available_node_types"].items()
    }
    assert bounds == groups
    assert derived["idle_timeout_minutes"] == idle_minutes
    assert derived["max_workers"] == sum(most for _, most, _ in groups.values())
    assert cluster_of(document)["autoscalerOptions"]["version"] == "v2"
