"""Which GPUs a task sees, on a Ray that counts a GPU which the machine does not have."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
OF_ANOTHER_RAY = ("CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")
PROGRAM = """
import json, os, ray
from cluster.remote import run_remote
from cluster.resources import Resources

def process():
    return os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()

ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
on_cpu, on_gpu = (run_remote(process, resources=Resources(1, gpus)) for gpus in (0, 1))
print(json.dumps([on_cpu(), on_cpu(), on_gpu(), on_gpu()]))
"""


def test_a_task_sees_only_its_gpus_and_its_process_does_not_keep_them() -> None:
    env = {name: value for name, value in os.environ.items() if name not in OF_ANOTHER_RAY}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        check=True,
        timeout=120,
    )
    first, second, third, fourth = json.loads(done.stdout.splitlines()[-1])
    assert [devices for devices, _ in (first, second, third, fourth)] == ["", "", "0", "0"]
    assert first == second  # in the same process
    assert third != fourth
