"""An S3 server that answers like AWS to a role whose s3:ListBucket is limited to a prefix.

AWS documents that HeadBucket needs s3:ListBucket, and that HeadObject and GetObject answer 403
instead of 404 for a key that does not exist if the role has no such right. A condition on
`s3:prefix` is met only by lists with a prefix.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET, PREFIX = "shared", "team/"


class _Handler(BaseHTTPRequestHandler):
    objects: dict[str, bytes]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._send(403)  # the role may only read

    def _answer(self) -> None:
        url = urlsplit(self.path)
        bucket, _, key = unquote(url.path).removeprefix("/").partition("/")
        query = parse_qs(url.query, keep_blank_values=True)
        if bucket != BUCKET:
            self._send(404, _error("NoSuchBucket"))
        elif "list-type" in query:
            prefix = query.get("prefix", [""])[0]
            self._send(
                *(
                    (200, _listing(self.objects, prefix))
                    if prefix.startswith(PREFIX)
                    else (403, b"")
                )
            )
        elif key.startswith(PREFIX) and key in self.objects:
            self._send(200, self.objects[key])
        else:
            self._send(403, _error("AccessDenied"))  # also HeadBucket

    def _send(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>refused</Message></Error>".encode()


def _listing(objects: dict[str, bytes], prefix: str) -> bytes:
    entries = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key])}</Size>"
        "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
        for key in sorted(objects)
        if key.startswith(prefix)
    )
    return (
        f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
    )


@contextmanager
def serve_objects(objects: dict[str, bytes]) -> Iterator[str]:
    """Serve the objects of the bucket by key; yield the server's URL."""
    handler = type("Handler", (_Handler,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
