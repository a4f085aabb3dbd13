"""Starting Ray again if it ends during its start."""

import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from cluster.local.processes import Process
from cluster.local.stack import StackError
from cluster.local.supervisor import MAX_RAY_STARTS, wait_for_ray


class Starts:
    """Starts real processes; each of the first `failures` ends with exit code 1, and the next one
    runs."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.processes: list[Process] = []

    def __call__(self) -> Process:
        code = (
            "raise SystemExit(1)"
            if len(self.processes) < self.failures
            else "import time; time.sleep(600)"
        )
        self.processes.append(subprocess.Popen([sys.executable, "-c", code]))
        return self.processes[-1]

    def ready(self) -> bool:
        return len(self.processes) > self.failures


@pytest.fixture
def starts(request: pytest.FixtureRequest) -> Iterator[Starts]:
    result = Starts(request.param)
    yield result
    for process in result.processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("starts", [0, 1, MAX_RAY_STARTS - 1], indirect=True)
def test_ray_starts_again_if_it_ends_during_its_start(starts: Starts) -> None:
    servers = {"Ray": starts()}
    wait_for_ray(starts.ready, start=starts, servers=servers, stopping=threading.Event())
    assert servers["Ray"] is starts.processes[-1]
    assert servers["Ray"].poll() is None
    assert len(starts.processes) == starts.failures + 1


@pytest.mark.parametrize("starts", [MAX_RAY_STARTS], indirect=True)
def test_the_number_of_starts_is_bounded(starts: Starts) -> None:
    with pytest.raises(StackError, match="Ray ended with exit code 1"):
        wait_for_ray(
            starts.ready, start=starts, servers={"Ray": starts()}, stopping=threading.Event()
        )
    assert len(starts.processes) == MAX_RAY_STARTS


@pytest.mark.parametrize("starts", [1], indirect=True)
def test_no_start_after_the_end_of_another_server(starts: Starts) -> None:
    s3 = subprocess.Popen([sys.executable, "-c", "raise SystemExit(2)"])
    s3.wait()
    ray = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with pytest.raises(StackError, match="S3 ended with exit code 2"):
            wait_for_ray(
                starts.ready,
                start=starts,
                servers={"S3": s3, "Ray": ray},
                stopping=threading.Event(),
            )
        assert not starts.processes
    finally:
        ray.kill()
        ray.wait()
