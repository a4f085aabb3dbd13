"""What the runbook tells to type names what there is."""

import re
from pathlib import Path

import yaml

from render import DOORS
from tests.k8s.manifests import K8S, PARTS, ROOT

RUNBOOK = (K8S / "README.md").read_text()


def test_every_file_of_ours_that_it_names_is_there() -> None:
    named = set(re.findall(r"k8s/[\w./-]*\w", RUNBOOK)) | set(re.findall(r"\]\(\.\./([\w./-]+)\)", RUNBOOK))
    assert len(named) > 6
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_door_that_it_renders_to_there_is_and_gets_a_part_of_an_overlay_that_fits() -> None:
    told = re.findall(r"kubectl kustomize k8s/overlays/(\S+) \| tailorbird render \S+ --to (\w+) --base -", RUNBOOK)
    assert {to for _, to in told} == {to for to, door in DOORS.items() if door.template is not None}
    folders = {"rayjob": "job", "rayservice": "service", "promote": "promote", "prove": "promote", "watch": "watch"}
    for part, to in told:
        assert part in PARTS
        assert Path(part).name == folders[to]


def test_the_secrets_that_it_makes_are_those_of_the_example() -> None:
    made = re.findall(r"create secret generic (\S+) --from-literal=(\w+)=", RUNBOOK)
    examples = list(yaml.safe_load_all((K8S / "examples" / "secrets.yaml").read_text()))
    assert set(made) == {(one["metadata"]["name"], key["secretKey"]) for one in examples for key in one["spec"]["data"]}
