"""The commands of the Kubernetes pages in docs/deploy name existing files, targets and secrets, in
a safe order."""

import re
from pathlib import Path

import pytest
import yaml

from tailorbird.config.loader import load_recipe
from tailorbird.release.manifests import TARGETS, render_manifest
from tests.k8s.manifests import K8S, PARTS, ROOT, of_kind, text_of

PAGES = ("kubernetes.md", "kubernetes-operate.md")
RUNBOOK = "\n".join((ROOT / "docs" / "deploy" / page).read_text() for page in PAGES)
BLOCKS = re.findall(r"```\n(.*?)```", RUNBOOK, flags=re.DOTALL)
"""Commands that are run together."""
JOBS = dict.fromkeys(("promote", "prove"), "promote") | {"preflight": "preflight"}
"""Targets that are rendered as Jobs, with their folders."""


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"k8s/[\w./-]*\w", RUNBOOK))
    assert len(named) > 6
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_render_target_is_documented_with_a_matching_overlay() -> None:
    commands = re.findall(
        r"kubectl kustomize k8s/overlays/(\S+) \| tailorbird render \S+ --to (\w+) --base -",
        RUNBOOK,
    )
    assert {to for _, to in commands} == {
        to for to, target in TARGETS.items() if target.template is not None
    }
    folders = (
        {"rayjob": "job", "rayservice": "service"}
        | JOBS
        | {to: to for to in ("watch", "monitoring")}
    )
    for part, to in commands:
        assert part in PARTS
        assert Path(part).name == folders[to]


@pytest.mark.parametrize("to", JOBS)
def test_an_earlier_job_is_deleted_before_it_is_applied_again(to: str) -> None:
    """Kubernetes refuses to change the pod of a Job, and does not run an unchanged Job again."""
    recipe = load_recipe(ROOT / "recipes" / "icd10_chapters.yaml", overrides=("name=my-task",))
    documents = list(
        yaml.safe_load_all(render_manifest(recipe, to=to, base=text_of(f"prod/{JOBS[to]}")).text)
    )
    (name,) = (job["metadata"]["name"] for job in of_kind(documents, "Job"))
    blocks = [block for block in BLOCKS if f"--to {to} " in block]
    assert blocks
    for block in blocks:
        before, after = block.split(f"--to {to} ")
        assert f"kubectl -n tailorbird-prod delete job {name} --ignore-not-found\n" in before
        assert f"logs -f job/{name}" in after


@pytest.mark.parametrize("to", ["promote", "prove"])
def test_a_manifest_is_not_applied_before_the_job_that_checks_the_version(to: str) -> None:
    """The Job updates the RayService itself. Only the first start of a service needs the manifest
    before `prove`."""
    blocks = [re.findall(r"--to (\w+)", block) for block in BLOCKS if f"--to {to} " in block]
    first = [["rayservice", "prove"]] if to == "prove" else []
    assert sorted(blocks) == sorted([*first, [to]])


def test_preflight_comes_before_a_training_that_would_be_retried() -> None:
    (block,) = (block for block in BLOCKS if "--to rayjob" in block)
    assert re.findall(r"--to (\w+)", block) == ["preflight", "rayjob"]


def test_the_created_secrets_are_those_of_the_example() -> None:
    made = re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", RUNBOOK)
    examples = list(yaml.safe_load_all((K8S / "examples" / "secrets.yaml").read_text()))
    assert set(made) == {
        (example["metadata"]["name"], key["secretKey"])
        for example in examples
        for key in example["spec"]["data"]
    }
