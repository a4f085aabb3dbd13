"""The child process that compiles and tries grammars, which the kernel ends if one is too slow."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

PROGRAM = Path(__file__).with_name("trial.py")


class Stopped(Exception):
    """The process was ended: the grammar takes too much time or memory."""


class TrialProcess:
    """One child process, which is started for the first grammar and again after its end.

    Calls block and take turns.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def reply(self, *, tokens: str, grammar: str, is_returned: bool) -> dict[str, str]:
        """Return the reply of the program. Raises Stopped."""
        request = {"tokens": tokens, "grammar": grammar, "is_returned": is_returned}
        with self._lock:
            line = self._exchange(json.dumps(request))
            if not line and self._end() == 0:  # it has ended because it was idle
                line = self._exchange(json.dumps(request))
            if not line:
                self._end()
                raise Stopped
        reply: dict[str, str] = json.loads(line)
        return reply

    def _exchange(self, request: str) -> str:
        """Return the line of the reply, or an empty text if the process has ended."""
        if self._process is None:
            # By its path, because a package of the driver's folder need not be importable there.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        streams: Any = self._process
        try:
            streams.stdin.write(request + "\n")
            streams.stdin.flush()
        except BrokenPipeError:
            return ""
        line: str = streams.stdout.readline()
        return line

    def _end(self) -> int | None:
        """Wait for the end of the process, and return its exit code."""
        if self._process is None:
            return None
        code = self._process.wait()
        self._process = None
        return code


TRIALS = TrialProcess()
"""One for each process, because it has the memory of xgrammar and torch."""
