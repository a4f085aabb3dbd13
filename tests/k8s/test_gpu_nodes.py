"""Trainings on nodes with 8 GPUs and RDMA: no overlay has them, so parts with the components are
built here."""

import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.k8s.crds import needs_crds, validator
from tests.k8s.manifests import K8S, Pod, build_part, of_kind, pods_of
from tests.k8s.pod_security import refusals
from tests.k8s.test_pods import amount, quota_of
from tests.k8s.test_schemas import KUBERNETES

PARTS = {
    "job": (
        "../../jobs/run",
        "[../../components/gpu-nodes, ../../components/rdma, ../prod/environment]",
    ),
    "service": ("../../base/service", "[../../components/gpu-nodes, ../prod/environment]"),
    "platform": ("../../base/platform", "[../../components/gpu-nodes]"),
}
RDMA = "rdma/hca_shared_devices_a"
VALUES = yaml.safe_load((K8S / "components" / "gpu-nodes" / "values.yaml").read_text())["spec"]


def build(folder: Path, part: str, *, changes: dict[str, str] | None = None) -> str:
    """Return a part as printed by `kubectl kustomize`, with changed texts in values.yaml."""
    shutil.copytree(K8S, folder / "k8s")
    values = folder / "k8s" / "components" / "gpu-nodes" / "values.yaml"
    for before, after in (changes or {}).items():
        assert before in values.read_text()
        values.write_text(values.read_text().replace(before, after))
    resource, components = PARTS[part]
    return build_part(folder, resource=resource, components=components)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {part: build(tmp_path_factory.mktemp(part), part) for part in PARTS}


def documents_of(text: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(text))


def gpu_pod(documents: list[dict[str, Any]]) -> Pod:
    (pod,) = (pod for pod in pods_of(documents) if "gpu-nodes" in pod.name)
    return pod


@pytest.mark.parametrize(("part", "kind"), [("job", "RayJob"), ("service", "RayService")])
def test_the_operator_accepts_the_group(built: dict[str, str], part: str, kind: str) -> None:
    (owner,) = of_kind(documents_of(built[part]), kind)
    validator(needs_crds(), kind).validate(owner)


def test_the_quota_and_the_limits_match_the_schema_and_the_values_are_not_applied(
    built: dict[str, str],
) -> None:
    for document in documents_of(built["platform"]):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert all("GpuNodeValues" not in text for text in built.values())


@pytest.mark.parametrize("part", ["job", "service"])
def test_a_pod_takes_a_whole_node_with_shared_memory_within_its_memory(
    built: dict[str, str], part: str
) -> None:
    pod = gpu_pod(documents_of(built[part]))
    (container,) = pod.spec["containers"]
    for kind in ("requests", "limits"):
        wanted = {
            "cpu": VALUES["pod"]["cpu"],
            "memory": VALUES["pod"]["memory"],
            "nvidia.com/gpu": "8",
        }
        disk = (
            {"ephemeral-storage": VALUES["pod"]["ephemeralStorage"]} if kind == "requests" else {}
        )
        assert {
            name: value for name, value in container["resources"][kind].items() if name != RDMA
        } == wanted | disk
    assert amount(VALUES["pod"]["ephemeralStorage"]) > amount(VALUES["pod"]["cache"])
    volumes = {volume["name"]: volume for volume in pod.spec["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert mounts["/dev/shm"]["emptyDir"] == {
        "medium": "Memory",
        "sizeLimit": VALUES["pod"]["sharedMemory"],
    }
    assert amount(VALUES["pod"]["sharedMemory"]) < amount(VALUES["pod"]["memory"]) / 2
    assert pod.most == VALUES["maxNodes"]


def test_all_gpu_nodes_and_the_head_fit_the_quota(built: dict[str, str]) -> None:
    platform, job = documents_of(built["platform"]), documents_of(built["job"])
    quota, (limits,) = quota_of(platform, "training"), of_kind(platform, "LimitRange")
    for what, most in quota["hard"].items():
        kind, _, name = what.partition(".")
        if name:  # not `pods`
            wanted = sum(
                pod.most * amount(container["resources"][kind].get(name, "0"))
                for pod in pods_of(job)
                for container in pod.spec["containers"]
            )
            assert 0 < wanted <= amount(most), what
    (own,) = gpu_pod(job).spec["containers"]
    for name in ("cpu", "memory"):
        assert amount(own["resources"]["limits"][name]) <= amount(
            limits["spec"]["limits"][0]["max"][name]
        )


def test_only_the_capability_for_rdma_violates_the_level_restricted(built: dict[str, str]) -> None:
    assert refusals(gpu_pod(documents_of(built["service"]))) == []
    job = documents_of(built["job"])
    pod = gpu_pod(job)
    (container,) = pod.spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert [container["resources"][kind][RDMA] for kind in ("requests", "limits")] == ["1", "1"]
    assert {reason.partition(": ")[2] for reason in refusals(pod)} == {"adds capabilities"}
    assert [refusals(other) for other in pods_of(job) if other.name != pod.name] == [[], []]


def test_a_changed_value_reaches_every_place(tmp_path: Path) -> None:
    changes = {
        "maxNodes: 4": "maxNodes: 2",
        'gpus: "8"': 'gpus: "4"',
        'cpu: "96"': 'cpu: "60"',
        "64Gi": "48Gi",
    }
    job = documents_of(build(tmp_path / "job", "job", changes=changes))
    pod = gpu_pod(job)
    (container,) = pod.spec["containers"]
    assert pod.most == 2
    assert [container["resources"][kind]["nvidia.com/gpu"] for kind in ("requests", "limits")] == [
        "4",
        "4",
    ]
    assert [container["resources"][kind]["cpu"] for kind in ("requests", "limits")] == ["60", "60"]
    assert pod.spec["volumes"][-1]["emptyDir"]["sizeLimit"] == "48Gi"
    platform = documents_of(
        build(tmp_path / "platform", "platform", changes=changes | {'gpus: "32"': 'gpus: "8"'})
    )
    quota, (limits,) = quota_of(platform, "training"), of_kind(platform, "LimitRange")
    assert quota["hard"]["requests.nvidia.com/gpu"] == "8"
    assert quota_of(platform, "serving")["hard"]["requests.nvidia.com/gpu"] == "4"
    assert limits["spec"]["limits"][0]["max"]["cpu"] == "60"
