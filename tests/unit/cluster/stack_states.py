"""The state of a stack whose process is this one."""

import os
from pathlib import Path
from typing import Any

import psutil

from cluster.local.stack import STATE_FILE, StackState, started_after_boot


def stack_state(**changes: Any) -> StackState:
    """Return the state; `changes` are its fields."""
    fields = {
        "pid": os.getpid(),
        "started": started_after_boot(psutil.Process()),
        "s3_endpoint": "http://127.0.0.1:1",
        "access_key": "an-access-key",
        "secret_key": "a-secret-key",
        "ray_address": "127.0.0.1:2",
        "dashboard_url": "http://127.0.0.1:3",
        "token": "a-token",
        "token_path": "/tmp/token",
        "serve_port": 4,
        "temp_dir": "/tmp/tb-none",
    }
    return StackState.model_validate(fields | changes)


def write_state(folder: Path, **changes: Any) -> StackState:
    """Write the state to the folder of the stack."""
    state = stack_state(**changes)
    (folder / STATE_FILE).write_text(state.model_dump_json())
    return state
