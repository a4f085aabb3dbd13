"""The acceptance test for a GPU in its reduced form, as a process with its own Ray."""

import json
import os
import subprocess
import sys
import tempfile

import psutil
import pytest

from benchmarks.gpu.__main__ import PARTS
from tests.integration.small import ROOT

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

SETTINGS = ("AWS_", "RAY_", "TAILORBIRD_")
"""Prefixes of the variables of the stack that other tests use."""


def test_all_parts_of_the_acceptance_test_run_in_their_reduced_form() -> None:
    environment = {name: os.environ[name] for name in os.environ if not name.startswith(SETTINGS)}
    with tempfile.TemporaryDirectory(prefix="tb-", dir="/tmp") as temporary:  # paths of sockets
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu", "--reduced"],
            cwd=temporary,
            env=environment | {"TMPDIR": temporary, "PYTHONPATH": str(ROOT)},
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
    results = [json.loads(line) for line in output.splitlines() if line.startswith('{"benchmark"')]
    names = [f"gpu {name}" for cases in PARTS.values() for name in cases]
    assert [result["benchmark"] for result in results] == names
    assert all(result["holds"] for result in results), results


def processes_with(temporary: str) -> list[str]:
    """Return the command lines of the processes that have this temporary folder."""
    return [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline", "environ"])
        if (process.info["environ"] or {}).get("TMPDIR") == temporary
    ]
