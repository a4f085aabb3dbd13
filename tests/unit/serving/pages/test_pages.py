"""The page for people, in a real browser, over a server that answers as the test wants."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serving.pages.render import render_page
from tests.browser import BROWSER, seen

MODELS = b'{"data": [{"id": "champion", "name": "task", "version": "v", "kind": "full", "classes": ["a"]}]}'

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium here; `apt-get install chromium` gives one")


@contextmanager
def busy() -> Iterator[str]:
    """Start a server that lists a model, and refuses every text as Ray Serve itself does: without JSON."""

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, MODELS if self.path.endswith("models") else render_page("classify.html"))

        def do_POST(self) -> None:
            self._send(429, b"Request dropped due to backpressure")

        def _send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_a_refusal_that_is_no_json_is_shown_by_its_status(tmp_path: Path) -> None:
    with busy() as url:
        page = seen(tmp_path, f"{url}#text=abc", until=r'role="alert">[^<]')
    assert 'role="alert">429 Too Many Requests</p>' in page
