"""A small OpenAI-compatible server on the loopback interface, whose answers and faults a test
defines."""

import json
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "m-2026-01-01"  # model that the server reports


@dataclass(frozen=True)
class Reply:
    """The answer to a request. With `waits`, it is sent when the server stops, which is too late.

    `pieces` are sent one by one after `content`, as the body of a stream. They are closed if the
    client disconnects.
    """

    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    waits: bool = False
    pieces: Generator[bytes, None, None] | None = None


@dataclass
class Server:
    """A running server with the requests that it received."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)  # of GET requests
    max_at_once: int = 0  # largest number of requests at the same time


Answer = Callable[[dict[str, Any], int], Reply]
"""Returns the answer to the body of a request and its number, from 0."""


def completion(
    text: str | None,
    *,
    model: str = MODEL,
    finish_reason: str = "stop",
    logprobs: tuple[float, ...] | None = None,
    tokens: tuple[int, int] | None = (10, 2),
) -> Reply:
    """Return a chat completion; `tokens` are those of the input and the output."""
    choice: dict[str, Any] = {"index": 0, "message": {"role": "assistant", "content": text}}
    choice["finish_reason"] = finish_reason
    if logprobs is not None:
        choice["logprobs"] = {"content": [{"token": "t", "logprob": value} for value in logprobs]}
    content: dict[str, Any] = {"object": "chat.completion", "model": model, "choices": [choice]}
    if tokens is not None:
        content["usage"] = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return Reply(content=json.dumps(content).encode())


def refusal(status: int, message: str, *, code: str | None = None, **headers: str) -> Reply:
    """Return an error in OpenAI's format; `Retry_After="1"` is the header `Retry-After: 1`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply(status, json.dumps({"error": {"message": message, "code": code}}).encode(), named)


def stream(pieces: Iterator[bytes] | Sequence[bytes]) -> Reply:
    """Return a stream of events, which are sent one by one."""
    return Reply(headers={"Content-Type": "text/event-stream"}, pieces=(piece for piece in pieces))


def event(text: str = "", *, end: str | None = None, model: str = MODEL) -> bytes:
    """Return an event with the next text of an answer; `end` is the finish reason of the last
    one."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": end}
    return _data({"object": "chat.completion.chunk", "model": model, "choices": [choice]})


def last_events(tokens: tuple[int, int] = (10, 2)) -> list[bytes]:
    """Return the events after an answer: its tokens, and the end of the stream."""
    usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return [_data({"model": MODEL, "choices": [], "usage": usage}), b"data: [DONE]\n\n"]


def _data(content: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def question(body: Mapping[str, Any]) -> str:
    """Return the last message of a request."""
    return str(body["messages"][-1]["content"])


@contextmanager
def endpoint_server(answer: Answer, *, models: int = 404, listed: bytes = b"") -> Iterator[Server]:
    """Run a server during the block; `models` and `listed` are its answer to a request for the list
    of models."""
    lock, stopped, running = threading.Lock(), threading.Event(), 0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            nonlocal running
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(server.bodies)
                server.bodies.append(body)
                server.authorizations.append(self.headers["Authorization"])
                running += 1
                server.max_at_once = max(server.max_at_once, running)
            reply = (
                answer(body, number)
                if self.path == "/v1/chat/completions"
                else refusal(404, "no such path")
            )
            if reply.waits:
                stopped.wait()
            with lock:
                running -= 1
            self.send_response(reply.status)
            framing = (
                ("Connection", "close")
                if reply.pieces
                else ("Content-Length", str(len(reply.content)))
            )
            for name, value in (*reply.headers.items(), framing):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.content)
            if reply.pieces is not None:
                with closing(reply.pieces) as pieces:
                    for piece in pieces:
                        self.wfile.write(piece)

        def do_GET(self) -> None:
            server.paths.append(self.path)
            server.authorizations.append(self.headers["Authorization"])
            self.send_response(models)
            self.send_header("Content-Length", str(len(listed)))
            self.end_headers()
            self.wfile.write(listed)

        def log_message(self, *_: object) -> None:
            """Do not write to stderr."""

    class QuietServer(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Ignore clients that closed their connection."""

    with QuietServer(("127.0.0.1", 0), Handler) as http:
        server = Server(f"http://127.0.0.1:{http.server_address[1]}/v1")
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            stopped.set()
            http.shutdown()
            thread.join()
