import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster import auth, connection, dashboard
from cluster import remote as remote_module
from cluster.local import stack
from cluster.resources import Resources
from tests.unit.cluster.stack_states import write_state

NAMES = (
    "AWS_ENDPOINT_URL",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_REGION",
    "AWS_PROFILE",
    "RAY_ADDRESS",
    "RAY_AUTH_MODE",
    "RAY_AUTH_TOKEN",
    "RAY_AUTH_TOKEN_PATH",
    "RAY_API_SERVER_ADDRESS",
    "RAY_DASHBOARD_ADDRESS",
    "TAILORBIRD_SERVE_URL",
    "TAILORBIRD_STACK_DASHBOARD",
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that monkeypatch also undoes changes that a test makes.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a running stack."""
    write_state(tmp_path, token_path=str(tmp_path / stack.TOKEN_FILE))
    (tmp_path / stack.TOKEN_FILE).write_text("token\n")
    (tmp_path / stack.KEYS_FILE).write_text("{}")
    return tmp_path


def test_a_running_stack_configures_an_empty_environment(folder: Path) -> None:
    connection.use_stack(folder)
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:2"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert dashboard.dashboard_url() == "http://127.0.0.1:3"
    assert auth.read_token() == "token"


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"])
def test_a_configured_environment_is_not_changed(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "mine")
    before = dict(os.environ)
    connection.use_stack(folder)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "address", [None, "127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "nonsense:x"]
)
def test_the_error_for_an_unreachable_ray_has_the_remedy(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(auth.SessionError, match="run `tailorbird stack up`, or set RAY_ADDRESS"),
        connection.connect(),
    ):
        pass


@pytest.mark.parametrize("address", ["", "127.0.0.1:8265", "http://127.0.0.1:1"])
def test_the_error_for_an_unreachable_dashboard_has_the_remedy(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(auth.SessionError, match="tailorbird stack up"):
        dashboard.request_dashboard("GET", "/api/version")


def test_the_token_variable_takes_precedence_over_the_token_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection.use_stack(folder)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    assert auth.read_token() == "other"
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", OTHER_DASHBOARD)
    assert auth.read_token() == "other"
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "none"))
    with pytest.raises(auth.SessionError, match="none"):
        auth.read_token()


OTHER_DASHBOARD = "http://ray.example.com:8265"


@pytest.fixture(params=["there", "gone", "elsewhere and exported without the marker", "a link"])
def exported(
    folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The exported environment of a stack, used in any folder, with and without the running
    stack."""
    connection.use_stack(folder)
    monkeypatch.setenv(
        "TAILORBIRD_HOME", str(folder if request.param == "there" else tmp_path / "another")
    )
    if request.param == "gone":
        for name in (stack.STATE_FILE, stack.KEYS_FILE):
            (folder / name).unlink()
    if "without" in request.param:
        monkeypatch.delenv(stack.OWN_DASHBOARD)
    if "link" in request.param:
        (tmp_path / "mine").symlink_to(folder / stack.TOKEN_FILE)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))


@pytest.mark.usefixtures("exported")
def test_the_token_of_a_stack_is_not_sent_to_another_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert auth.read_token()
    for same in ("http://127.0.0.1:3", "http://localhost:3/"):
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", same)
        assert auth.read_token()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", OTHER_DASHBOARD)
    assert auth.read_token() == ""


@pytest.mark.usefixtures("exported")
def test_a_token_that_is_not_from_a_stack_is_sent_in_the_environment_of_a_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "auth_token").write_text("theirs")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", OTHER_DASHBOARD)
    assert auth.read_token() == "theirs"


def test_the_error_for_a_local_ray_without_write_access_has_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(**_: object) -> None:
        raise OSError(30, "Read-only file system", "/home/ray/.ray")

    monkeypatch.setenv("RAY_ADDRESS", remote_module.LOCAL)
    monkeypatch.setattr("ray.init", refused)
    with (
        pytest.raises(
            auth.SessionError, match=r"Read-only file system.*Set HOME to a writable folder"
        ),
        connection.connect(),
    ):
        pass


@pytest.mark.parametrize(
    ("available", "cpus", "gpus"),
    [
        (None, 4, 1),  # nodes can join
        ({"CPU": 2.0}, 2, 0),
        ({"CPU": 8.0, "GPU": 2.0}, 4, 1),
        ({"CPU": 8.0}, 4, 0),
        ({}, 0, 0),
    ],
)
def test_a_task_requests_at_most_the_resources_of_a_cluster_of_fixed_size(
    available: dict[str, float] | None, cpus: float, gpus: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379" if available is None else "local")
    monkeypatch.setattr("ray.cluster_resources", lambda: available)
    options = remote_module.task_options(Resources(4, 1))
    assert (options["num_cpus"], options["num_gpus"]) == (cpus, gpus)
    assert options["runtime_env"]["env_vars"] == ({} if gpus else {"CUDA_VISIBLE_DEVICES": ""})


def test_the_stack_that_can_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process with the command line of a supervisor counts as a running stack."""
    other = tmp_path / "elsewhere" / ".tailorbird"
    sleeper = "import time; time.sleep(60)"
    (tmp_path / "tailorbird_sleeper.py").write_text(sleeper)
    monkeypatch.setattr(stack, "SUPERVISOR", "tailorbird_sleeper")
    assert "no S3 server is configured" in str(connection.stack_hint(tmp_path))
    child = subprocess.Popen(
        [sys.executable, "-m", "tailorbird_sleeper", str(other), ""], cwd=tmp_path
    )
    try:
        while stack.running_folders() != [other]:
            time.sleep(0.05)
        hint = str(connection.stack_hint(tmp_path))
    finally:
        child.kill()
        child.wait()
    assert f"one is running in {other}; to use it: export TAILORBIRD_HOME={other}" in hint
    (tmp_path / stack.KEYS_FILE).touch()
    assert connection.stack_hint(tmp_path) == (
        f"the stack of {tmp_path} is not running; run `tailorbird stack up` to start it"
    )
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert connection.stack_hint(tmp_path) is None
