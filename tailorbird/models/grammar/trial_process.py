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


class Unsupported(ValueError):
    """xgrammar cannot compile the grammar; the message is its own."""


class TrialProcess:
    """One child process, which is started for the first grammar and again after its end.

    Calls block and take turns. Waiting and reading let other threads run.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._tokens = b""  # that the process has

    def compiled(self, *, tokens: bytes, grammar: str) -> str:
        """Return the serialized grammar.

        Raises Stopped also if its tokens are slow to find, and Unsupported.
        """
        with self._lock:
            reply = self._exchange(tokens, grammar=grammar)
            if reply is None and self._end() == 0:  # it has ended because it was idle
                reply = self._exchange(tokens, grammar=grammar)
            if reply is None:
                self._end()
                raise Stopped
        header, content = reply
        if "message" in header:
            raise Unsupported(header["message"])
        if "compiled" not in header:
            raise Stopped
        return content.decode()

    def _exchange(self, tokens: bytes, *, grammar: str) -> tuple[dict[str, Any], bytes] | None:
        """Return the reply of the program, or None if the process has ended before its end."""
        if self._process is None:
            # By its path, because a package of the driver's folder need not be importable there.
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
            self._tokens = b""
        streams: Any = self._process
        new_tokens = b"" if tokens == self._tokens else tokens
        text = grammar.encode()
        request = {"tokens": len(new_tokens), "grammar": len(text)}
        try:
            streams.stdin.write(json.dumps(request).encode() + b"\n" + new_tokens + text)
            streams.stdin.flush()
        except BrokenPipeError:
            return None
        self._tokens = tokens
        line = streams.stdout.readline()
        if not line.endswith(b"\n"):
            return None
        header: dict[str, Any] = json.loads(line)
        size = header.get("compiled", 0)
        content = streams.stdout.read(size)
        return (header, content) if len(content) == size else None

    def _end(self) -> int | None:
        """Wait for the end of the process, and return its exit code."""
        if self._process is None:
            return None
        code = self._process.wait()
        self._process = None
        return code


TRIALS = TrialProcess()
"""One for each process, because it has the memory of xgrammar and torch."""
