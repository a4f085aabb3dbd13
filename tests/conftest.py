"""Settings of every test: property tests never fail by the clock, for machines differ; a run ends with its own code."""

import atexit
import os
import sys

import pytest
from hypothesis import settings

settings.register_profile("unhurried", deadline=None)
settings.load_profile("unhurried")

_sessions: list[pytest.Session] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    if not hasattr(session.config, "workerinput"):  # a worker of pytest-xdist hands its results over and ends by itself
        _sessions.append(session)


def _leave() -> None:
    """Ends the process with pytest's code, without the destructors of C++.

    Each `ray.init` of a process but the first leaves a thread behind that exports metrics (Ray 2.60). One whose cluster
    is gone says so in Ray's log, which the destructors have taken from it: a run in which all had passed ended in a
    segmentation fault. Tests connect dozens of times; a process of Tailorbird connects once.
    """
    for session in _sessions:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(int(session.exitstatus))


atexit.register(_leave)  # before Ray and Arrow are imported: it runs after all that they have registered
