"""The console behind a secret address."""

import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import urlopen

import pytest
from starlette.testclient import TestClient

from serving.console_server import ConsoleServer, console_app
from tailorbird.storage.paths import TaskPaths
from tests import console_registry as made

RUN = "0f3a9c21d4e70f3a"


@pytest.fixture
def paths(tmp_path: Path) -> TaskPaths:
    """Return a task with a finished run, in a registry with another task."""
    paths = TaskPaths(f"{tmp_path.as_uri()}/registry/icd10-chapters")
    made.add_run(paths, RUN, at=datetime.now(UTC))
    made.add_run(TaskPaths(f"{paths.registry}/contracts"), RUN, at=datetime.now(UTC))
    return paths


def test_the_policy_of_a_page_allows_its_own_style_and_nothing_else(paths: TaskPaths) -> None:
    client = TestClient(console_app(paths.registry, secret="s"), base_url="http://127.0.0.1")
    for path in (
        "/console",
        "/console/icd10-chapters",
        f"/console/icd10-chapters/runs/{RUN}/report",
        "/console/none",
    ):
        page = client.get(f"/s{path}")
        policy = dict(
            part.strip().split(" ", 1)
            for part in page.headers["content-security-policy"].split(";")
        )
        assert policy["default-src"] == "'none'"
        assert re.fullmatch(r"'sha256-[^']+'", policy["style-src"])
        assert "script-src" not in policy
        assert not re.search(r"<script|\sstyle=|\son\w+=|src=\"http", page.text)


def test_the_local_console_shows_all_tasks_at_its_secret_address_only(paths: TaskPaths) -> None:
    client = TestClient(
        console_app(f"{paths.registry}/", secret="s3cret"), base_url="http://127.0.0.1:8270"
    )
    page = client.get("/s3cret/console")
    assert page.status_code == 200
    assert all(name in page.text for name in ("icd10-chapters", "contracts"))
    for path in ("/console", "/", "/other/console", "/s3cret2/console"):
        refused = client.get(path)
        assert (refused.status_code, "s3cret" in refused.text) == (403, False)
    foreign = client.get("/s3cret/console", headers={"host": "tailorbird.example"})
    assert (foreign.status_code, foreign.json()["error"]["type"]) == (403, "foreign_page")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_prints_the_address_and_ends_at_a_signal(
    paths: TaskPaths, number: signal.Signals
) -> None:
    command = [sys.executable, *f"-m tailorbird console {paths.registry} --port 0".split()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        # the port accepts connections before the server answers
        with urlopen(url, timeout=300) as page:
            assert page.status == 200
        process.send_signal(number)
        assert process.wait(300) == 0


def test_the_port_is_taken_before_its_address_is_printed(paths: TaskPaths) -> None:
    server = ConsoleServer(paths.registry, port=0)
    port = server._socket.getsockname()[1]
    assert re.fullmatch(rf"http://127\.0\.0\.1:{port}/[\w-]{{22}}/console", server.url)
    with server._socket, pytest.raises(ValueError, match="--port"):
        ConsoleServer(paths.registry, port=port)
