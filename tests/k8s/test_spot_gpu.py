"""Serving on GPUs of spot nodes: no overlay does it, so a part with the component is built here."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tailorbird.config.loader import load_recipe
from tailorbird.release.manifests import SERVICE, ServedChampion, render_manifest
from tests.k8s.crds import needs_crds, validator
from tests.k8s.manifests import K8S, KUBECTL, ROOT, Pod, matches, of_kind, pods_of
from tests.k8s.pod_security import refusals

PART = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources: [../../base/service]
components: [../../components/spot-gpu, ../prod/environment]
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("with") / "k8s"
    shutil.copytree(K8S, folder)
    (folder / "overlays" / "gpu").mkdir()
    (folder / "overlays" / "gpu" / "kustomization.yaml").write_text(PART)
    command = [str(KUBECTL), "kustomize", "overlays/gpu"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def documents(built: str, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Return the part rendered for a recipe with one GPU per replica."""
    monkeypatch.setattr(
        "tailorbird.release.manifests._serve_config", lambda *_, **__: ServedChampion({})
    )
    overrides = ("serving.gpus_per_replica=1", "serving.min_replicas=2", "serving.max_replicas=3")
    recipe = load_recipe(ROOT / "recipes" / "icd10_coder_chat.yaml", overrides=overrides)
    return list(yaml.safe_load_all(render_manifest(recipe, to="rayservice", base=built).text))


def gpu_pod(documents: list[dict[str, Any]]) -> Pod:
    (pod,) = (pod for pod in pods_of(documents) if "gpu-spot" in pod.name)
    return pod


def test_the_operator_accepts_the_service(documents: list[dict[str, Any]]) -> None:
    (service,) = of_kind(documents, "RayService")
    validator(needs_crds(), "RayService").validate(service)


def test_replicas_with_a_gpu_get_gpu_pods_and_no_idle_ones(documents: list[dict[str, Any]]) -> None:
    (service,) = of_kind(documents, "RayService")
    groups = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert [
        (group["groupName"], group["minReplicas"], group["maxReplicas"]) for group in groups
    ] == [
        ("cpu", 0, 4),
        ("gpu-spot", 2, 4),  # three replicas, and one for a candidate
    ]


def test_admission_budgets_and_policies_apply_to_gpu_pods(documents: list[dict[str, Any]]) -> None:
    pod = gpu_pod(documents)
    assert refusals(pod) == []
    assert pod.labels[SERVICE] == "icd10-coder-chat"
    assert pod.spec["serviceAccountName"] == "serving"
    budgets = [
        document["spec"]["selector"] for document in of_kind(documents, "PodDisruptionBudget")
    ]
    assert (
        sum(matches(selector, pod.labels) for selector in budgets) == 1
    )  # Kubernetes refuses to evict a pod with two budgets
    within = [
        policy
        for policy in of_kind(documents, "NetworkPolicy")
        if policy["metadata"]["name"].startswith("within")
    ]
    assert [matches(policy["spec"]["podSelector"], pod.labels) for policy in within] == [True]


def test_gpu_pods_have_the_image_and_settings_of_the_environment(
    documents: list[dict[str, Any]],
) -> None:
    (container,) = gpu_pod(documents).spec["containers"]
    assert "tailorbird-gpu@sha256:" in container["image"]
    (settings,) = (
        config_map
        for config_map in of_kind(documents, "ConfigMap")
        if "ray-settings" in config_map["metadata"]["name"]
    )
    assert {"configMapRef": {"name": settings["metadata"]["name"]}} in container["envFrom"]


def test_a_service_with_other_groups_is_not_patched(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    folder = tmp_path / "k8s" / "overlays" / "gpu"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(PART)
    base = tmp_path / "k8s" / "base" / "service" / "rayservice.yaml"
    base.write_text(base.read_text().replace("groupName: cpu", "groupName: other"))
    done = subprocess.run(
        [str(KUBECTL), "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert "test failed" in done.stderr
