"""The acceptance test for a GPU in its reduced form, as a process with its own Ray."""

import json
import os
import subprocess
import sys
import tempfile

import psutil
import pytest

from tests.integration.small import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(1800)]

SETTINGS = ("AWS_", "RAY_", "TAILORBIRD_")
"""Prefixes of the variables of the stack that other tests use."""


def test_all_parts_of_the_acceptance_test_run_in_their_reduced_form() -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)
    }
    with tempfile.TemporaryDirectory(
        prefix="tb-", dir="/tmp"
    ) as temporary:  # paths of sockets must be short
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", "--reduced"],
            cwd=ROOT,
            env=environment | {"TMPDIR": temporary},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate()
        finally:
            process.terminate()
            process.wait()
        assert process.returncode == 0, output[-6000:]
        assert processes_with(temporary) == []
    results = [
        json.loads(line) for line in output.splitlines() if line.startswith('{"benchmark": "gpu ')
    ]
    assert [result["benchmark"] for result in results] == [
        "gpu a",
        "gpu a",
        "gpu b",
        "gpu c",
        "gpu d",
    ]
    for result in results:
        assert result["reduced"]
        assert result["holds"] or result.get("skipped") == "vLLM is not installed", result


def processes_with(temporary: str) -> list[str]:
    """Return the command lines of the processes that have this temporary folder."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["environ"] or {}).get("TMPDIR") == temporary
    ]
