import os
import stat
from pathlib import Path

import psutil
import pytest

from cluster.local import ray_env, stack
from cluster.local.folder import NAME, default_folder
from tests.unit.cluster.stack_states import write_state


def test_a_reused_process_id_is_not_a_running_stack(tmp_path: Path) -> None:
    state = write_state(tmp_path)
    assert stack.status(tmp_path) == state
    write_state(tmp_path, started=stack.started_after_boot(psutil.Process()) - 3600)
    assert stack.status(tmp_path) is None
    assert not stack.down(tmp_path)
    assert not (tmp_path / stack.STATE_FILE).exists()


def test_a_stack_is_running_after_the_clock_was_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = write_state(tmp_path)
    boot, start = psutil.boot_time(), psutil.Process().create_time()
    monkeypatch.setattr(psutil, "boot_time", lambda: boot + 22)
    monkeypatch.setattr(psutil.Process, "create_time", lambda _: start + 22)
    assert stack.status(tmp_path) == state


def test_down_does_not_stop_a_process_that_reuses_the_id_of_a_dead_server(tmp_path: Path) -> None:
    write_state(tmp_path, started=0.0, server_pids=(os.getpid(),))
    assert not stack.down(tmp_path)


def test_the_error_for_an_invalid_state_file_names_it(tmp_path: Path) -> None:
    (tmp_path / stack.STATE_FILE).write_text("{}")
    with pytest.raises(
        stack.StackError, match=r"stack\.json is not a valid state of a stack .*; delete the file"
    ):
        stack.status(tmp_path)


def test_jobs_and_replicas_recognize_the_token_of_a_stack_before_its_state_is_written(
    tmp_path: Path,
) -> None:
    keys = ray_env.stack_keys(tmp_path)
    variables = ray_env.environment(11_000, folder=tmp_path, temp_dir=tmp_path, keys=keys)
    assert variables[stack.OWN_DASHBOARD] == variables["RAY_API_SERVER_ADDRESS"]
    assert Path(variables["RAY_AUTH_TOKEN_PATH"]) == tmp_path / stack.TOKEN_FILE


def mode(folder: Path) -> int:
    return stat.S_IMODE(folder.stat().st_mode)


@pytest.mark.parametrize("name", [None, stack.KEYS_FILE, stack.LOCK_FILE])
def test_an_empty_folder_and_one_of_a_stack_become_private(
    name: str | None, tmp_path: Path
) -> None:
    stack._make_private(tmp_path / "parent" / "new")
    assert mode(tmp_path / "parent" / "new") == 0o700
    folder = tmp_path / "existing"
    folder.mkdir(mode=0o755)
    if name:
        (folder / name).touch()
    stack._make_private(folder)
    assert mode(folder) == 0o700


def test_a_folder_that_others_use_is_refused_and_keeps_its_permissions(tmp_path: Path) -> None:
    (tmp_path / "another's file").touch()
    tmp_path.chmod(0o1777)
    with pytest.raises(
        stack.StackError, match=r"other users have access to it; .*Give a new folder with --dir or"
    ):
        stack.up(tmp_path)
    assert not stack.down(tmp_path)
    assert mode(tmp_path) == 0o1777
    assert [path.name for path in tmp_path.iterdir()] == ["another's file"]
    with pytest.raises(stack.StackError, match="is not a folder"):
        stack.up(tmp_path / "another's file")
    tmp_path.chmod(0o700)
    stack._make_private(tmp_path)  # nobody else uses it


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_lock_of_another_user_does_not_make_a_folder_that_of_a_stack(tmp_path: Path) -> None:
    (tmp_path / stack.LOCK_FILE).touch()
    os.chown(tmp_path / stack.LOCK_FILE, 65534, 65534)
    tmp_path.chmod(0o1777)
    with pytest.raises(stack.StackError, match="other users have access"):
        stack.up(tmp_path)
    assert mode(tmp_path) == 0o1777


def test_the_folder_is_that_of_the_nearest_parent_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TAILORBIRD_HOME", raising=False)
    inner = tmp_path / "project" / "recipes"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert default_folder() == inner / NAME
    (tmp_path / NAME).mkdir()
    (tmp_path / "project" / NAME).mkdir()
    assert default_folder() == tmp_path / "project" / NAME
    # the folders belong to another user
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert default_folder() == inner / NAME
    monkeypatch.setenv("TAILORBIRD_HOME", "elsewhere")
    assert default_folder() == inner / "elsewhere"
