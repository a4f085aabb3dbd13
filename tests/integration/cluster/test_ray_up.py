"""Serve on two nodes of `ray up`, each in its own Linux namespaces with its own network."""

import json
import shutil
import subprocess
import sys

import pytest

from tests.integration.cluster.ray_up_nodes import ADDRESSES, NUM_REQUESTS, ROOT, SEPARATE

# next to the stacks of other tests, a node would not start within Ray's limit of 30 s
pytestmark = pytest.mark.long


def test_the_haproxy_of_each_node_sends_requests_to_replicas_of_the_other_and_none_to_the_fallback_proxy() -> (
    None
):
    if not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("the programs unshare and ip are not installed")
    permitted = subprocess.run(
        ["unshare", *SEPARATE, "ip", "link", "add", "bridge", "type", "bridge"]
    )
    if permitted.returncode:
        pytest.skip(
            "this machine does not permit new user and network namespaces, or has no bridges"
        )
    program = [sys.executable, "-m", "tests.integration.cluster.ray_up_nodes"]
    process = subprocess.run(
        ["unshare", *SEPARATE, *program], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr[-20_000:]
    report = json.loads(process.stdout.splitlines()[-1])
    assert set(report) == set(ADDRESSES)
    for measured in report.values():
        assert (measured["replicas"], measured["fallback"]) == (NUM_REQUESTS, 0)
        assert set(measured["answers"]) == set(ADDRESSES.values())
