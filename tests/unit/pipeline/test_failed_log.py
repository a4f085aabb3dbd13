import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tailorbird import storage
from tailorbird.pipeline.failed_log import run_and_keep_log

OUTPUT = (
    "import sys; print('to stdout', flush=True); print('to stderr', file=sys.stderr, flush=True); "
)


def logs_in(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.glob("task/logs/*.log"))]


def run(code: str, folder: Path, *, max_bytes: int = 1000) -> int:
    return run_and_keep_log(
        [sys.executable, "-c", code], task_uri=(folder / "task").as_uri(), max_bytes=max_bytes
    )


def test_the_log_of_a_killed_driver_is_kept_and_that_of_a_successful_one_is_not(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The kernel kills a driver with SIGKILL if the node has no memory left."""
    assert run(OUTPUT, tmp_path) == 0
    assert logs_in(tmp_path) == []
    assert run(f"{OUTPUT}import os, signal; os.kill(os.getpid(), signal.SIGKILL)", tmp_path) == 137
    assert logs_in(tmp_path) == ["to stdout\nto stderr\n\nexit code 137\n"]
    # Ray's log of the job has it too
    assert capfd.readouterr().out == "to stdout\nto stderr\n" * 2


def test_only_the_end_of_a_long_log_is_kept(tmp_path: Path) -> None:
    run("import sys; sys.stdout.write('x' * 300_000 + 'end'); sys.exit(1)", tmp_path, max_bytes=10)
    assert logs_in(tmp_path) == ["xxxxxxxend\nexit code 1\n"]


def test_a_log_that_cannot_be_stored_does_not_change_the_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(uri: str, _: bytes) -> None:
        raise storage.StorageError(f"{uri}: access denied")

    monkeypatch.setattr(storage, "write_bytes", refuse)
    assert run("import sys; sys.exit(7)", tmp_path) == 7
    assert "the log cannot be stored" in capfd.readouterr().err


def test_the_log_of_a_stopped_driver_is_kept(tmp_path: Path) -> None:
    """Ray sends SIGTERM to the driver's process and to all of its children."""
    driver = "import signal, sys; print('begun', flush=True); signal.pause()"
    code = (
        "import sys; from tailorbird.pipeline.failed_log import run_and_keep_log; "
        f"sys.exit(run_and_keep_log([sys.executable, '-c', {driver!r}], "
        f"task_uri={(tmp_path / 'task').as_uri()!r}))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begun\n"
        os.killpg(parent.pid, signal.SIGTERM)
    assert parent.returncode == 143
    assert logs_in(tmp_path) == ["begun\n\nexit code 143\n"]
