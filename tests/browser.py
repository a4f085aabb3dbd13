"""Open pages in a headless Chromium, if it is installed."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
POLL_S, SEEN_TIMEOUT_S = 0.2, 120
ON_PIPES = 'exec "$@" 3<"$0/requests" 4>"$0/responses"'
"""With --remote-debugging-pipe, Chromium reads requests from descriptor 3 and writes responses to descriptor 4."""


def chromium(folder: Path, *arguments: str) -> str:
    """Run Chromium and return its output. Use `seen` for pages that read a stream, since the clock may be virtual."""
    return subprocess.run(_command(folder, *arguments), capture_output=True, text=True, check=True, timeout=120).stdout


def seen(folder: Path, url: str, *arguments: str, until: str) -> str:
    """Return the page's HTML when it matches the pattern; fail with the HTML after two minutes."""
    deadline, html = time.monotonic() + SEEN_TIMEOUT_S, ""
    with _talking(folder, *arguments) as call:
        target = call("Target.createTarget", url=url)["targetId"]
        session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        while time.monotonic() < deadline:
            shown = call("Runtime.evaluate", session=session, expression="document.documentElement.outerHTML")
            html = str(shown["result"].get("value", ""))
            if re.search(until, html, re.DOTALL):
                return html
            time.sleep(POLL_S)
    raise AssertionError(f"{until!r} was not seen in {html}")


class Call(Protocol):
    """Function that sends a command of Chromium's DevTools protocol and returns the result."""

    def __call__(self, method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]: ...


@contextmanager
def _talking(folder: Path, *arguments: str) -> Iterator[Call]:
    for name in ("requests", "responses"):
        os.mkfifo(folder / name)
    command = ["sh", "-c", ON_PIPES, str(folder), *_command(folder, "--remote-debugging-pipe", *arguments)]
    browser = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    numbers, received = count(1), b""
    try:
        with (
            (folder / "requests").open("wb", buffering=0) as requests,
            (folder / "responses").open("rb", buffering=0) as responses,
        ):

            def call(method: str, *, session: str | None = None, **parameters: Any) -> dict[str, Any]:
                nonlocal received
                number = next(numbers)
                message = {"id": number, "method": method, "params": parameters}
                requests.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
                while True:
                    line, ended, rest = received.partition(b"\0")
                    if not ended:
                        more = responses.read(1 << 16)
                        assert more, "Chromium ended"
                        received += more
                        continue
                    received = rest
                    if (answer := json.loads(line)).get("id") == number:
                        assert "error" not in answer, answer
                        return dict(answer["result"])

            yield call
    finally:
        browser.kill()
        browser.wait()
        for name in ("requests", "responses"):
            (folder / name).unlink()


def _command(folder: Path, *arguments: str) -> list[str]:
    return [
        str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--allow-file-access-from-files", f"--user-data-dir={folder / 'profile'}", *arguments,
    ]  # fmt: skip
