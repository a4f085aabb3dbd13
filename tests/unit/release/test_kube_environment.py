"""The folder for GitOps is complete, stable and valid, and a mistake in an overlay is refused."""

import copy
import re
import shutil
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from tailorbird.cli.app import app
from tailorbird.config.loader import load_recipe
from tailorbird.config.recipe import Recipe
from tailorbird.release.kube_documents import RenderError
from tailorbird.release.kube_environment import (
    SECRET_FIELDS,
    Written,
    _named,
    render_environment,
    require_complete,
    write_environment,
)
from tests.k8s.crds import FILES, needs_crds, validator
from tests.k8s.manifests import K8S, ROOT, kustomize, of_kind, put
from tests.k8s.test_schemas import KUBERNETES, WITHOUT_SCHEMA

RECIPE = ROOT / "recipes" / "icd10_chapters.yaml"
DRAINABLE = (
    "serving.autoscaling.min_replicas=2",
    "serving.autoscaling.max_replicas=3",
    "serving.autoscaling.max_replicas_per_node=1",
)


def recipe(*overrides: str) -> Recipe:
    return load_recipe(RECIPE, overrides=(*DRAINABLE, *overrides))


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The overlay `prod`, among the others, with an organisation's own values instead of the
    examples."""
    folder = tmp_path_factory.mktemp("own") / "k8s"
    shutil.copytree(K8S, folder)
    for file in (folder / "overlays").rglob("*.yaml"):
        text = file.read_text()
        for example, own in (
            ("registry.example.com", "registry.our.org"),
            ("0" * 64, "a1" * 32),
            ("111122223333", "444455556666"),
            ("example.internal", "our.internal"),
        ):
            text = text.replace(example, own)
        file.write_text(text)
    return folder / "overlays" / "prod"


@pytest.fixture(scope="module")
def rendered(overlay: Path) -> Written:
    """The folder for the recipe and the overlay `prod`."""
    return render_environment(recipe(), overlay=overlay)


@pytest.fixture(scope="module")
def documents(rendered: Written) -> list[dict[str, Any]]:
    """All documents of the folder."""
    files = [text for path, text in rendered.files.items() if "kustomization" not in path]
    return [document for text in files for document in parsed(text)]


def parsed(text: str) -> list[dict[str, Any]]:
    return list(yaml.load_all(text, Loader=yaml.CSafeLoader))


def test_the_folder_contains_all_permanent_resources_once(
    rendered: Written, tmp_path: Path
) -> None:
    write_environment(rendered, tmp_path)
    built: list[dict[str, Any]] = []
    for folder in ("platform", "icd10-chapters"):
        # kustomize refuses a folder with the same document twice.
        built += parsed(kustomize(str(tmp_path / folder)))
    kinds = {"Namespace", "ServiceAccount", "RoleBinding", "ResourceQuota", "NetworkPolicy"}
    kinds |= {"RayService", "PodDisruptionBudget", "StatefulSet", "CronJob", "Probe"}
    assert kinds <= {document["kind"] for document in built}
    for document in built:
        if document["kind"] in FILES:
            validator(needs_crds(), document["kind"]).validate(document)
        elif document["kind"] not in WITHOUT_SCHEMA:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)
    assert rendered.notes[-2] == "these Secrets must exist in tailorbird-prod: ray-token, redis"


def test_all_secrets_are_listed_also_those_for_images_and_for_a_store_without_roles(
    overlay: Path,
) -> None:
    *_, required, optional = render_environment(recipe(), overlay=overlay.parent / "onprem").notes
    assert required == "these Secrets must exist in tailorbird-onprem: ray-token, redis, registry"
    assert {"endpoint-keys", "serving-credentials", "training-credentials"} <= set(
        re.findall(r"[\w-]+", optional)
    )


def test_the_same_input_gives_the_same_bytes_and_other_tasks_keep_their_files(
    rendered: Written, overlay: Path, tmp_path: Path
) -> None:
    write_environment(rendered, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.yaml")}
    write_environment(render_environment(recipe("name=another"), overlay=overlay), tmp_path)
    write_environment(render_environment(recipe(), overlay=overlay), tmp_path)
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in tmp_path.iterdir()} == {"platform", "icd10-chapters", "another"}


def test_the_shipped_overlays_and_components_must_get_own_values_first(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    shipped = tmp_path / "k8s" / "overlays" / "prod"
    file = shipped / "service" / "kustomization.yaml"
    listed = "".join(f", ../../../components/{name}" for name in ("gateway", "alb"))
    file.write_text(file.read_text().replace(", ../environment]", f", ../environment{listed}]"))
    with pytest.raises(RenderError, match="example value") as error:
        render_environment(recipe(), overlay=shipped)
    for example in (
        "registry.example.com/tailorbird@sha256:000",
        "valkey/valkey@sha256:000",
        "role/tailorbird-prod-",
        "tailorbird.example.com",
        "certificate/",
        "192.0.2.0/24",
        "198.51.100.0/24",
    ):
        assert example in str(error.value)


def test_the_certificate_of_a_gateway_is_a_secret_that_must_exist() -> None:
    listener = {"tls": {"certificateRefs": [{"kind": "Secret", "name": "serving-tls"}]}}
    gateway = {"kind": "Gateway", "metadata": {"name": "a"}, "spec": {"listeners": [listener]}}
    assert list(_named([gateway], SECRET_FIELDS)) == ["serving-tls"]


@pytest.mark.parametrize(
    ("kind", "path", "value", "message"),
    [
        ("ServiceAccount", "metadata.name", "other", "ServiceAccount training"),
        ("ConfigMap", "metadata.name", "other", "ConfigMap ray-settings-"),
        ("CronJob", "metadata.namespace", "elsewhere", "elsewhere"),
        ("NetworkPolicy", "metadata.name", "Gateway_1", "Gateway_1"),
        ("NetworkPolicy", "metadata.name", "names-and-stores", "names-and-stores"),
    ],
)
def test_a_mistake_in_the_documents_is_refused(
    documents: list[dict[str, Any]], overlay: Path, kind: str, path: str, value: str, message: str
) -> None:
    documents = copy.deepcopy(documents)
    require_complete(documents, overlay=overlay)
    matching = [
        each
        for each in of_kind(documents, kind)
        if each["metadata"]["name"].startswith(FIRST.get(kind, ""))
    ]
    put(matching[0], path, value)
    with pytest.raises(RenderError, match=message):
        require_complete(documents, overlay=overlay)


FIRST = {"ServiceAccount": "training", "ConfigMap": "ray-settings"}
"""The beginning of the name of the document to change, where there are several of a kind."""


def test_a_folder_that_is_no_environment_is_refused(overlay: Path, tmp_path: Path) -> None:
    with pytest.raises(RenderError, match="--overlay has 0 namespaces"):
        render_environment(recipe(), overlay=overlay / "service")
    with pytest.raises(RenderError, match="'platform' is that of the common folder"):
        render_environment(recipe("name=platform"), overlay=overlay)
    with pytest.raises(RenderError, match=r"`kubectl kustomize .*` failed"):
        render_environment(recipe(), overlay=tmp_path)


@pytest.mark.parametrize(
    "arguments", [["--overlay", "k8s", "--to", "watch"], ["--overlay", "k8s"], []]
)
def test_the_command_has_either_a_target_or_an_overlay_and_a_folder(arguments: list[str]) -> None:
    done = CliRunner().invoke(app, ["render", str(RECIPE), *arguments])
    assert done.exit_code == 2
    assert "--overlay" in done.output
