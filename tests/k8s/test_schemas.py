"""Validation of the overlays against the schemas of Kubernetes and KubeRay."""

import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest

from tests.k8s.crds import FILES, needs_crds, validator
from tests.k8s.manifests import K8S, KUBECTL, PARTS, build, of_kind, pods_of

KUBERNETES = "1.33"
WITHOUT_SCHEMA = {"PodMonitor", "Probe", "PrometheusRule"}
"""Kinds of the Prometheus Operator, which tests/k8s/monitoring checks."""


@pytest.mark.parametrize("part", PARTS)
def test_kubernetes_documents_match_the_schema(part: str) -> None:
    core = [
        document for document in build(part) if document["kind"] not in {*FILES, *WITHOUT_SCHEMA}
    ]
    assert core
    for document in core:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.parametrize("part", [part for part in PARTS if of_kind(build(part), *FILES)])
def test_ray_resources_match_the_schema_of_kuberay(part: str) -> None:
    folder = needs_crds()
    for document in of_kind(build(part), *FILES):
        validator(folder, document["kind"]).validate(document)


def test_every_folder_of_an_overlay_is_a_part_or_a_component() -> None:
    folders = {path.parent for path in (K8S / "overlays").rglob("kustomization.yaml")}
    assert {
        str(folder.relative_to(K8S / "overlays"))
        for folder in folders
        if folder.name != "environment"
    } == {*PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_all_documents_are_in_the_namespace_of_their_environment(part: str) -> None:
    wanted = f"tailorbird-{part.split('/')[0]}"
    for document in build(part):
        metadata = document["metadata"]
        assert (
            metadata["name"] if document["kind"] == "Namespace" else metadata["namespace"]
        ) == wanted


@pytest.mark.parametrize("part", [part for part in PARTS if pods_of(build(part))])
def test_references_to_the_settings_contain_their_hash(part: str) -> None:
    documents = build(part)
    (settings,) = (
        config_map
        for config_map in of_kind(documents, "ConfigMap")
        if config_map["metadata"]["name"].startswith("ray-settings")
    )
    assert settings["metadata"]["name"] != "ray-settings"
    assert _settings_named(documents) == {settings["metadata"]["name"]}


def _settings_named(value: object) -> set[str]:
    if isinstance(value, dict):
        own = {value["configMapRef"]["name"]} if "configMapRef" in value else set()
        return own.union(*(_settings_named(inner) for inner in value.values()))
    return (
        set().union(*(_settings_named(inner) for inner in value))
        if isinstance(value, list)
        else set()
    )


@pytest.mark.parametrize(
    ("file", "original", "changed_text", "part"),
    [
        ("base/service/rayservice.yaml", "groupName: cpu", "groupName: other", "prod/service"),
        (
            "base/service/rayservice.yaml",
            'rayVersion: "2.60.0"',
            'rayVersion: "2.61.0"',
            "prod/service",
        ),
        ("jobs/run/rayjob.yaml", "groupName: cpu", "groupName: other", "prod/job"),
        (
            "base/platform/accounts.yaml",
            "automountServiceAccountToken: false",
            "automountServiceAccountToken: true",
            "prod",
        ),
    ],
)
def test_the_build_fails_if_a_patch_no_longer_matches(
    tmp_path: Path, file: str, original: str, changed_text: str, part: str
) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    changed = tmp_path / "k8s" / file
    text = changed.read_text()
    assert original in text
    changed.write_text(text.replace(original, changed_text))
    command = [str(KUBECTL), "kustomize", f"overlays/{part}"]
    done = subprocess.run(
        command, cwd=tmp_path / "k8s", capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "test failed" in done.stderr
