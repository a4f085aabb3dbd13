"""The image matches its locks, and the manifests match the image."""

import os
import re
import subprocess
from pathlib import Path

import yaml

from cluster.local import haproxy
from cluster.local.ray_env import CLUSTER_SETTINGS
from locks.generate import LOCKS, TORCH_PACKAGES
from tailorbird import PACKAGES
from tests.k8s.manifests import CLUSTER_SPEC, K8S, PARTS, ROOT, build, cluster_of, of_kind

DOCKERFILE = (K8S / "Dockerfile").read_text()


def test_the_base_image_has_the_locked_ray_and_python() -> None:
    base = re.search(
        r"^ARG BASE=rayproject/ray:([\d.]+)-py(\d)(\d+)-cpu$", DOCKERFILE, re.MULTILINE
    )
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


def test_no_image_contains_cuda_twice_and_the_cpu_image_contains_none() -> None:
    (base,) = re.findall(r"^ARG BASE=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert base.endswith("-cpu")  # the wheels of torch in gpu.txt contain CUDA
    assert not [name for name in pinned("cpu.txt") if TORCH_PACKAGES.match(f"{name}==")]
    assert {"torch", "nvidia-cublas"} <= pinned("gpu.txt").keys()
    install = re.search(
        r"^RUN if \[ \"\$\{DEVICE\}\" = cpu \](?:.*\\\n)+.*$", DOCKERFILE, re.MULTILINE
    )
    assert install is not None
    # The command of the image, with `echo` for pip.
    locks = f"{ROOT}/locks/"
    script = (
        install[0]
        .removeprefix("RUN ")
        .replace("/tmp/locks/", locks)
        .replace("pip install", "cat; echo")
    )
    environment = {
        "DEVICE": "cpu",
        "TORCH_INDEX": "https://index",
        "TORCH_SHA256": "ab",
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        ["sh", "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    requirement, options = done.stdout.splitlines()
    assert requirement == f"torch=={pinned('gpu.txt')['torch']}+cpu --hash=sha256:ab"
    assert "--index-url https://index" in options


def test_both_images_have_the_same_versions() -> None:
    """Pods of both images are in one cluster and exchange pickled objects."""
    cpu, gpu = pinned("cpu.txt"), pinned("gpu.txt")
    common = cpu.keys() & gpu.keys()
    assert len(common) > 100
    assert {name: (cpu[name], gpu[name]) for name in common if cpu[name] != gpu[name]} == {}
    assert gpu["torch"] == pinned("torch.txt")["torch"]


def pinned(lock: str) -> dict[str, str]:
    return dict(
        re.findall(r"^([a-z0-9.-]+)==(\S+) ", (ROOT / "locks" / lock).read_text(), re.MULTILINE)
    )


def test_pods_run_as_the_user_of_the_image() -> None:
    for part in PARTS:
        for document in of_kind(build(part), *CLUSTER_SPEC):
            cluster = cluster_of(document)
            for template in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
                context = template["template"]["spec"]["securityContext"]
                assert (context["runAsUser"], context["runAsGroup"]) == (1000, 100)


def test_the_ray_settings_contain_those_of_the_local_stack() -> None:
    for part in PARTS:
        for settings in of_kind(build(part), "ConfigMap"):
            if "ray-settings" in settings["metadata"]["name"]:
                data = settings["data"]
                assert CLUSTER_SETTINGS.items() <= data.items()
                program = Path(data[haproxy.PROGRAM]).relative_to("/home/ray/tailorbird")  # WORKDIR
                assert (ROOT / program).samefile(haproxy.__file__)


def test_the_operator_has_one_release_watches_our_namespaces_and_enables_no_alpha_gate() -> None:
    values = yaml.safe_load((K8S / "operator" / "values.yaml").read_text())
    runbook = (ROOT / "docs" / "deploy" / "kubernetes.md").read_text()
    assert f"--version {values['image']['tag'].removeprefix('v')}" in runbook
    assert set(values["watchNamespace"]) == {
        f"tailorbird-{part}" for part in PARTS if "/" not in part
    }
    gates = {gate["name"] for gate in values["featureGates"] if gate["enabled"]}
    assert gates == {
        "RayClusterStatusConditions",
        "RayJobDeletionPolicy",
        "RayMultiHostIndexing",
        "RayServiceIncrementalUpgrade",
    }
