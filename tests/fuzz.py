"""Fuzz a service with valid and invalid requests generated from its OpenAPI document."""

import subprocess
import sys
from pathlib import Path

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
NUM_EXAMPLES = 40
"""Number of examples per operation and phase."""


def fuzz(url: str, *, folder: Path) -> None:
    """Fail with schemathesis' report if a response has a status of 500 or more, or does not match
    the document."""
    command = [
        *(
            str(Path(sys.executable).with_name("schemathesis")),
            "run",
            f"{url}/openapi.json",
            "--url",
            url,
        ),
        *(
            f"--checks={','.join(CHECKS)}",
            f"--max-examples={NUM_EXAMPLES}",
            "--phases=examples,coverage,fuzzing",
        ),
        *(
            "--mode=all",
            "--seed=1",
            "--workers=2",
            "--request-timeout=60",
            "--generation-database=none",
            "--no-color",
        ),
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=540)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
