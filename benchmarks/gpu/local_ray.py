"""A Ray head on this machine without an S3 server."""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.gpu.report import Failed
from cluster.local import ports
from cluster.local.ray_env import environment, stack_keys
from cluster.local.stack import StackError
from cluster.local.supervisor import ray_answers, start_ray, stop_servers

ROOT = Path(__file__).parents[2]
START_TIMEOUT_S = 120


@contextmanager
def local_ray(folder: Path) -> Iterator[None]:
    """Start a Ray head with a dashboard, and set the environment variables of this process for it.

    A cluster that RAY_ADDRESS names is used instead. Raises Failed.
    """
    if os.environ.get("RAY_ADDRESS"):
        yield
        return
    keys = stack_keys(folder)
    base, claim = ports.claim_ports()
    temp_dir = Path(
        tempfile.mkdtemp(prefix="tb-", dir="/tmp")
    )  # paths of Ray's sockets must be short
    variables = environment(base, folder=folder, temp_dir=temp_dir, keys=keys)
    os.environ.update(
        {name: value for name, value in variables.items() if not name.startswith("AWS_")}
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    os.environ["TAILORBIRD_CACHE"] = str(folder / "cache")
    try:
        server = start_ray(base, temp_dir=temp_dir, num_cpus=None)
    except StackError as error:  # Ray is not installed
        raise Failed(str(error)) from None
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ray_answers(base, keys=keys):
            if server.poll() is not None or time.monotonic() > deadline:
                raise Failed("Ray does not start on this machine; see its output above")
            time.sleep(0.2)
        os.environ["RAY_ADDRESS"] = f"127.0.0.1:{base + ports.GCS}"
        yield
    finally:
        os.environ.pop("RAY_ADDRESS", None)
        stop_servers([server])
        shutil.rmtree(temp_dir, ignore_errors=True)
        claim.close()


def require_gpus(num_gpus: int) -> None:
    """Raise Failed if the connected Ray has fewer GPUs. A training would wait for them until the
    time limit."""
    import ray

    available = ray.cluster_resources().get("GPU", 0.0)
    if available < num_gpus:
        raise Failed(
            f"Ray finds {available:g} GPUs on this machine instead of {num_gpus}; it needs the "
            "driver's NVML"
        )
