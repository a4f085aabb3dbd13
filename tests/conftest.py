"""Settings and summary of every test run: property tests are the same in each run, and Ray starts
are counted."""

import atexit
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

from tests.browser import BROWSER, Browser, OpenPage
from tests.shared_run import SHARE_THE_SMALL_RUN

settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, max_examples=25
)
settings.register_profile("search", deadline=None, max_examples=1000)  # make test-long
settings.load_profile("repeatable")

RAY_STARTS = (
    "cluster.local.supervisor",
    "bin/ray start",
    "gcs/gcs_server",
    "tests.integration.training.nodes",
)
"""Parts of the command lines that start a Ray node, or a process that starts one."""

MANY_MODULES = 200

_sessions: list[pytest.Session] = []
_num_ray_starts = 0
_num_frozen_modules = 0


def _count_ray_starts(event: str, arguments: tuple[Any, ...]) -> None:
    global _num_ray_starts
    if event == "subprocess.Popen":
        command = " ".join(map(str, arguments[1]))
        _num_ray_starts += any(part in command for part in RAY_STARTS)


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # a worker of pytest-xdist ends by itself
        _sessions.append(session)
    sys.addaudithook(_count_ray_starts)
    # A shell starts background jobs with SIGINT ignored. Processes that tests start and interrupt
    # would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exclude the imported modules from garbage collection, which takes a second with torch and
    transformers."""
    _freeze_modules()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call() -> None:
    """Exclude modules that fixtures have imported too: transformers collects twice for each list of
    prompts."""
    if len(sys.modules) > _num_frozen_modules + MANY_MODULES:
        _freeze_modules()


def _freeze_modules() -> None:
    global _num_frozen_modules
    gc.collect()
    gc.freeze()
    _num_frozen_modules = len(sys.modules)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workerinput"):
        session.config.workeroutput["ray_starts"] = _num_ray_starts  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One Chromium for all tests of a process."""
    if BROWSER is None:
        pytest.skip("chromium is not installed; run `apt-get install chromium`")
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("playwright is not installed; run `make setup-dev`")
    started = Browser()
    yield started
    started.close()


@pytest.fixture
def open_page(browser: Browser) -> Iterator[OpenPage]:
    """Open pages. A test with this fixture runs in the browser's thread."""
    with browser.windows() as open_page:
        yield open_page


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that opens pages in the browser's thread."""
    if "open_page" not in pyfuncitem.fixturenames:
        return None
    browser, names = pyfuncitem.funcargs["browser"], pyfuncitem._fixtureinfo.argnames
    assert isinstance(browser, Browser)
    browser.run(pyfuncitem.obj, **{name: pyfuncitem.funcargs[name] for name in names})
    return True


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Return a scheduler that assigns whole files to a worker, and files that share a run or a
    service to one worker.

    `--dist loadgroup` has no effect with pytest 9.2 and pytest-xdist 3.8.
    """
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            if path.endswith(SHARE_THE_SMALL_RUN):
                return "small run"
            return (
                path.rpartition("/")[0]
                if "/classification/test_" in path and "integration" in path
                else path
            )

    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add the Ray starts of a worker of pytest-xdist."""
    global _num_ray_starts
    _num_ray_starts += getattr(node, "workeroutput", {}).get("ray_starts", 0)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the number of Ray starts; `--durations` in pyproject.toml prints the slowest tests."""
    terminalreporter.write_line(f"Ray starts: {_num_ray_starts}")


def _exit_without_destructors() -> None:
    """Exit with pytest's code, without running C++ destructors.

    Each `ray.init` of a process except the first leaves a thread behind that exports metrics (Ray
    2.60). If its cluster is gone, the thread logs an error, but the destructors have already
    deleted Ray's logger: a run in which all tests passed ended with a segmentation fault. Tests
    connect dozens of times; a process of Tailorbird connects once.
    """
    for session in _sessions:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(session.exitstatus))


# Registered before Ray and Arrow are imported, so that it runs after their exit handlers.
atexit.register(_exit_without_destructors)
