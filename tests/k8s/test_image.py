"""The image matches its locks, and the manifests match the image."""

import re
from pathlib import Path

import yaml

from cluster.local import haproxy
from cluster.local.ray_env import CLUSTER_SETTINGS, Keys, environment
from locks.generate import LOCKS
from tailorbird import PACKAGES
from tests.k8s.manifests import CLUSTER_SPEC, K8S, PARTS, ROOT, build, cluster_of, of_kind

DOCKERFILE = (K8S / "Dockerfile").read_text()


def test_the_base_image_has_the_locked_ray_and_python() -> None:
    base = re.search(r"^ARG BASE=rayproject/ray:([\d.]+)-py(\d)(\d+)-\$\{DEVICE\}$", DOCKERFILE, re.MULTILINE)
    assert base is not None
    for device in ("cpu", "gpu"):
        assert f"--python-version={base[2]}.{base[3]}" in LOCKS[f"{device}.txt"]
        assert f"\nray=={base[1]} " in (ROOT / "locks" / f"{device}.txt").read_text()
    for part in PARTS:
        for document in of_kind(build(part), *CLUSTER_SPEC):
            assert cluster_of(document)["rayVersion"] == base[1]


def test_the_image_installs_packages_before_code_and_does_not_run_as_root() -> None:
    copied = re.findall(r"^COPY (?!--)(\w+)/ \1/$", DOCKERFILE, re.MULTILINE)
    assert sorted(copied) == sorted(PACKAGES)
    assert DOCKERFILE.index("pip install") < DOCKERFILE.index("COPY pyproject.toml")
    assert "--require-hashes" in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE)[-1] == "1000:100"
    sent = (K8S / "Dockerfile.dockerignore").read_text().splitlines()
    assert next(line for line in sent if not line.startswith("#")) == "*"
    assert {f"!{name}" for name in PACKAGES} <= set(sent)
    assert not re.search(r"^(ARG|ENV) \S*(TOKEN|SECRET|PASSWORD|KEY)", DOCKERFILE, re.MULTILINE)


def test_pods_run_as_the_user_of_the_image() -> None:
    for part in PARTS:
        for document in of_kind(build(part), *CLUSTER_SPEC):
            cluster = cluster_of(document)
            for template in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                context = template["template"]["spec"]["securityContext"]
                assert (context["runAsUser"], context["runAsGroup"]) == (1000, 100)


def test_the_ray_settings_equal_those_of_the_local_stack_and_the_documentation() -> None:
    keys = Keys(access_key="", secret_key="", token_path=ROOT)
    stack = environment(0, folder=ROOT, temp_dir=ROOT, keys=keys)
    documented = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    assert len(documented) >= 6
    for part in PARTS:
        settings = [
            data["data"] for data in of_kind(build(part), "ConfigMap") if "ray-settings" in data["metadata"]["name"]
        ]
        for data in settings:
            assert CLUSTER_SETTINGS.items() <= data.items()
            program = Path(data[haproxy.PROGRAM]).relative_to("/home/ray/tailorbird")  # WORKDIR
            assert (ROOT / program).samefile(haproxy.__file__)
            assert {name: data[name] for name in documented} == {name: stack[name] for name in documented}


def test_the_operator_has_one_release_watches_our_namespaces_and_enables_no_alpha_gate() -> None:
    values = yaml.safe_load((K8S / "operator" / "values.yaml").read_text())
    runbook = (ROOT / "docs" / "deploy" / "kubernetes.md").read_text()
    assert f"--version {values['image']['tag'].removeprefix('v')}" in runbook
    assert set(values["watchNamespace"]) == {f"tailorbird-{part}" for part in PARTS if "/" not in part}
    gates = {gate["name"] for gate in values["featureGates"] if gate["enabled"]}
    assert gates == {
        "RayClusterStatusConditions",
        "RayJobDeletionPolicy",
        "RayMultiHostIndexing",
        "RayServiceIncrementalUpgrade",
    }
