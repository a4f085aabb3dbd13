"""A Ray head on this machine without an S3 server."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import set_project_variables
from cluster.local import ports
from cluster.local.ray_env import environment, stack_keys
from cluster.local.supervisor import ray_answers, start_ray, stop_servers

RAY_START_TIMEOUT_S = 120


@contextmanager
def local_ray(folder: Path) -> Iterator[None]:
    """Start a Ray head with a dashboard and without an S3 server, and set the environment
    variables of this process for it.

    A cluster that RAY_ADDRESS names is used instead.
    """
    set_project_variables(folder)
    if os.environ.get("RAY_ADDRESS"):
        yield
        return
    keys = stack_keys(folder)
    base, claim = ports.claim_ports()
    temp_dir = Path(tempfile.mkdtemp(prefix="tb-", dir="/tmp"))  # paths of sockets must be short
    variables = environment(base, folder=folder, temp_dir=temp_dir, keys=keys)
    os.environ.update({name: variables[name] for name in variables if name[:4] != "AWS_"})
    head = start_ray(base, temp_dir=temp_dir, num_cpus=None)
    try:
        deadline = time.monotonic() + RAY_START_TIMEOUT_S
        while not ray_answers(base, keys=keys):
            if head.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Ray does not start on this machine; see its output above")
            time.sleep(0.2)
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{base + ports.GCS}"
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        stop_servers([head])
        shutil.rmtree(temp_dir, ignore_errors=True)
        claim.close()
