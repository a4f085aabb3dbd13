import os
from pathlib import Path

import psutil
import pytest

from cluster import session, stack

NAMES = (
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION", "AWS_PROFILE", "RAY_ADDRESS"),
    *("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS", "RAY_DASHBOARD_ADDRESS"),
    "TAILORBIRD_SERVE_URL",
)


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        # Set first, so that what a test leaves behind is undone as well.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the state of a stack whose process is alive: this one."""
    state = stack.StackState(
        pid=os.getpid(),
        started=psutil.Process().create_time(),
        s3_endpoint="http://127.0.0.1:1",
        access_key="key",
        secret_key="secret",
        ray_address="127.0.0.1:2",
        dashboard_url="http://127.0.0.1:3",
        token="token",
        token_path=str(tmp_path / "token"),
        serve_port=4,
        temp_dir="/tmp/tb-none",
    )
    (tmp_path / stack.STATE_FILE).write_text(state.model_dump_json())
    (tmp_path / "token").write_text("token\n")
    return tmp_path


def test_a_running_stack_fills_a_bare_environment(folder: Path) -> None:
    session.use_stack(folder)
    assert os.environ["RAY_ADDRESS"] == "127.0.0.1:2"
    assert os.environ["AWS_ENDPOINT_URL"] == "http://127.0.0.1:1"
    assert session.dashboard_url() == "http://127.0.0.1:3"
    assert session.auth_headers() == {"Authorization": "Bearer token"}


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL"])
def test_a_configured_environment_is_left_as_it_is(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "mine")
    before = dict(os.environ)
    session.use_stack(folder)
    assert dict(os.environ) == before


def test_without_a_stack_nothing_is_set(tmp_path: Path) -> None:
    before = dict(os.environ)
    session.use_stack(tmp_path)
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "address", [None, "127.0.0.1:1", "ray://127.0.0.1:1", "no-such-host.invalid:6379", "nonsense:x"]
)
def test_a_ray_that_does_not_answer_is_an_error_with_what_to_do(
    address: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    with (
        pytest.raises(session.SessionError, match="start one with `tailorbird stack up`, or set RAY_ADDRESS"),
        session.connect(),
    ):
        pass


@pytest.mark.parametrize("address", ["", "127.0.0.1:8265", "http://127.0.0.1:1"])
def test_a_dashboard_that_does_not_answer_is_an_error_with_what_to_do(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
    with pytest.raises(session.SessionError, match="tailorbird stack up"):
        session.request_dashboard("GET", "/api/version")


def test_the_token_s_own_variable_comes_before_its_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.use_stack(folder)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "other")
    assert session.auth_headers() == {"Authorization": "Bearer other"}


def test_a_token_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(session.SessionError, match="none: No such file"):
        session.auth_headers()


def test_a_dashboard_that_does_not_answer_may_be_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    with pytest.raises(session.Unreachable):
        session.request_dashboard("GET", "/api/version")


def test_an_address_that_is_given_comes_before_the_environment_s(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.use_stack(folder)
    monkeypatch.setenv("TAILORBIRD_HOME", str(folder))
    session.use_dashboard("http://127.0.0.1:99")
    assert session.dashboard_url() == "http://127.0.0.1:99"


def test_the_stack_s_token_is_shown_to_the_stack_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.use_stack(folder)
    monkeypatch.setenv("TAILORBIRD_HOME", str(folder))
    for same in (None, "http://127.0.0.1:3", "http://localhost:3/"):
        session.use_dashboard(same)
        assert session.auth_headers()
    session.use_dashboard("http://ray.example.com:8265")
    assert session.auth_headers() == {}


def test_another_cluster_s_token_goes_where_it_is_told_to(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session.use_stack(folder)
    monkeypatch.setenv("TAILORBIRD_HOME", str(folder))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "theirs")
    session.use_dashboard("http://ray.example.com:8265")
    assert session.auth_headers() == {"Authorization": "Bearer theirs"}
