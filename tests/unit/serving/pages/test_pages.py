"""The HTML pages in a real browser, with a fake server."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from serving.engines.base_chat import PartialAnswer
from serving.http.chat_format import CHAT, LAST_EVENT
from serving.pages.render import render_page
from tests.browser import BROWSER, seen

MODELS = b'{"data": [{"id": "champion", "name": "task", "version": "v", "kind": "full", "classes": ["a"]}]}'

pytestmark = pytest.mark.skipif(BROWSER is None, reason="chromium is not installed; run `apt-get install chromium`")


@contextmanager
def _server(page: str, *, status: int, answer: bytes) -> Iterator[str]:
    """Serve a page and a list of one model, and answer every POST request with `status` and `answer`."""

    class Service(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content, policy = (MODELS, "") if self.path.endswith("models") else render_page(page)
            self._send(200, content, policy=policy)

        def do_POST(self) -> None:
            self._send(status, answer)

        def _send(self, status: int, content: bytes, *, policy: str = "") -> None:
            self.send_response(status)
            self.send_header("content-security-policy", policy)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def test_an_error_that_is_not_json_is_shown_by_its_status(tmp_path: Path) -> None:
    with _server("classify.html", status=429, answer=b"Request dropped due to backpressure") as url:
        page = seen(tmp_path, f"{url}#text=abc", until=r'role="alert">[^<]')
    assert 'role="alert">429 Too Many Requests</p>' in page


def test_a_classification_shows_the_most_probable_classes_as_text(tmp_path: Path) -> None:
    result = {"label": "<b>a</b>", "score": 0.75, "scores": {"b": 0.25, "<b>a</b>": 0.75}}
    answer = json.dumps({"results": [result]}).encode()
    with _server("classify.html", status=200, answer=answer) as url:
        page = seen(tmp_path, f"{url}#text=abc", until=r'class="label">[^<]')
    assert '<div class="label">&lt;b&gt;a&lt;/b&gt;  75.0%</div>' in page
    assert '<div class="soft">b  25.0%</div>' in page


def test_a_chat_shows_the_streamed_answer_and_its_version(tmp_path: Path) -> None:
    head = CHAT.head(CHAT.chunk, request_id="r", created=1, model="task", version="v")
    pieces = [CHAT.piece(head, text="<i>one"), CHAT.piece(head, text=" two")]
    answer = b"".join([*CHAT.first(head), *pieces, CHAT.last(head, PartialAnswer("", 0, "length")), LAST_EVENT])
    with _server("chat.html", status=200, answer=answer) as url:
        page = seen(tmp_path, f"{url}#text=abc", until=r'<li class="assistant"><span>[^<]+</span><span')
    assert '<li class="user"><span>abc</span></li>' in page
    assert "<span>&lt;i&gt;one two</span>" in page
    assert "v, cut at the token limit" in page
