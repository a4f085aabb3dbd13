import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import requests

from cluster import connection
from cluster.auth import SessionError
from cluster.dashboard import request_dashboard
from cluster.local import stack as stacks
from tailorbird import storage

ROOT = Path(__file__).parents[3]


def test_up_returns_the_running_stack(stack: stacks.StackState) -> None:
    folder = Path(stack.token_path).parent
    assert stacks.up(folder) == stack
    assert stacks.status(folder) == stack


def test_s3_and_the_dashboard_listen_on_loopback_only(stack: stacks.StackState) -> None:
    ports = {int(url.rsplit(":", 1)[1]) for url in (stack.s3_endpoint, stack.dashboard_url)}
    listening = [
        item
        for item in psutil.net_connections("tcp")
        if item.status == psutil.CONN_LISTEN and item.laddr
    ]
    assert {item.laddr.ip for item in listening if item.laddr and item.laddr.port in ports} == {
        "127.0.0.1"
    }


def test_the_dashboard_rejects_requests_with_a_wrong_token(stack: stacks.StackState) -> None:
    wrong = {"Authorization": "Bearer wrong"}
    for path in ("/api/version", "/api/jobs/", "/api/serve/applications/"):
        answer = requests.get(stack.dashboard_url + path, headers=wrong, timeout=30)
        assert answer.status_code in (401, 403)


@pytest.mark.usefixtures("stack")
@pytest.mark.parametrize(
    ("token", "message"),
    [("wrong", "refuses the token"), ("", "requires a token, but none is set")],
)
def test_without_a_valid_token_the_error_names_the_variable_to_set(
    token: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    with pytest.raises(SessionError, match=rf"{message}; set RAY_AUTH_TOKEN_PATH"):
        request_dashboard("GET", "/api/version")


def test_a_driver_connects_and_its_workers_reach_s3(stack: stacks.StackState, bucket: str) -> None:
    import ray

    def write(uri: str) -> dict[str, str]:
        storage.write_bytes(uri, b"from a worker")
        return dict(os.environ)

    with connection.connect():
        seen = ray.get(ray.remote(num_cpus=1)(write).remote(f"{bucket}/written"))
        with connection.connect():
            assert ray.is_initialized()
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert storage.read_bytes(f"{bucket}/written") == b"from a worker"
    for name in (
        "AWS_ENDPOINT_URL",
        "AWS_ACCESS_KEY_ID",
        "RAY_API_SERVER_ADDRESS",
        "TAILORBIRD_SERVE_URL",
    ):
        assert seen[name] == stack.environment()[name]


def test_a_submitted_job_uses_this_python_and_connects_to_s3_and_ray(
    stack: stacks.StackState, tmp_path: Path
) -> None:
    (tmp_path / "entry.py").write_text(
        "import hashlib, os, sys, json, ray\nray.init(log_to_driver=False)\nkey = "
        "hashlib.sha256(os.environ['AWS_ACCESS_KEY_ID'].encode()).hexdigest()  # other tests "
        "search logs for it\nprint('SEEN', json.dumps([sys.prefix, key, "
        "ray.cluster_resources()['CPU']]))\n"
    )
    program = str(Path(sys.executable).parent / "ray")
    command = [program, "job", "submit", f"--working-dir={tmp_path}", "--", "python", "entry.py"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = next(line for line in done.stdout.splitlines() if line.startswith("SEEN"))
    key = hashlib.sha256(stack.access_key.encode()).hexdigest()
    assert json.loads(seen.removeprefix("SEEN ")) == [sys.prefix, key, 2.0]


@pytest.mark.long
def test_a_killed_stack_restarts_with_its_data_and_stops_without_leftovers(
    stack: stacks.StackState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = stacks.up(tmp_path, num_cpus=1)
    try:
        assert first.s3_endpoint != stack.s3_endpoint
        _use(first, monkeypatch)
        storage.write_bytes("s3://lake/kept", b"kept")
        os.kill(first.pid, signal.SIGKILL)
        psutil.wait_procs([psutil.Process(first.pid)], timeout=10)
        assert stacks.status(tmp_path) is None
        second = stacks.up(tmp_path, num_cpus=1)
        assert (second.pid, second.access_key, second.token) != (
            first.pid,
            first.access_key,
            first.token,
        )
        assert (second.access_key, second.secret_key, second.token) == (
            first.access_key,
            first.secret_key,
            first.token,
        )
        _use(second, monkeypatch)
        assert storage.read_bytes("s3://lake/kept") == b"kept"
        family = psutil.Process(second.pid).children(recursive=True)
        assert family
    finally:
        assert stacks.down(tmp_path)
    assert not any(_runs(process) for process in family)
    for state in (first, second):
        assert not _processes_naming(state.temp_dir)
        assert not Path(state.temp_dir).exists()
    assert stacks.status(tmp_path) is None
    assert not stacks.down(tmp_path)
    assert not (tmp_path / "stack.json").exists()


def test_the_error_of_a_failed_start_names_the_log(tmp_path: Path) -> None:
    (tmp_path / "s3").write_text("not a folder")
    with pytest.raises(
        stacks.StackError, match=r"ended during its start[\s\S]*stack\.log[\s\S]*FileExistsError"
    ):
        stacks.up(tmp_path)
    assert stacks.status(tmp_path) is None


def _use(state: stacks.StackState, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in state.environment().items():
        monkeypatch.setenv(name, value)


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def _processes_naming(text: str) -> list[int]:
    processes = psutil.process_iter(["cmdline"])
    return [
        item.pid
        for item in processes
        if any(text in argument for argument in item.info["cmdline"] or ())
    ]
