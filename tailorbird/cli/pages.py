"""Write a stored page to a local file, and open it in a browser."""

import tempfile
import webbrowser
from pathlib import Path

from tailorbird import storage
from tailorbird.checks.verify import restore_pages
from tailorbird.cli.options import write_file

REPORT = "report.html"


def fetch_page(uri: str) -> tuple[str, tuple[str, ...]]:
    """Return the URI of a page, and the names of the files that were rendered again.

    `uri` is a run or a version, whose report is rendered again if it is not up to date, or a stored
    `.html` file.
    """
    uri = uri.rstrip("/")
    if uri.endswith(".html"):
        return uri, ()
    return f"{uri}/{REPORT}", restore_pages(uri)


def save_page(uri: str, *, output: Path | None) -> Path:
    """Write a stored page to `output`, or to a new temporary folder, and return the path of the
    file."""
    content = storage.read_bytes(uri)
    path = output or Path(tempfile.mkdtemp(prefix="tailorbird-")) / uri.rpartition("/")[2]
    write_file(path, content)
    return path


def open_page(path: Path) -> None:
    """Open a local page in the default browser; raise ValueError if there is none."""
    if not webbrowser.open(path.absolute().as_uri()):
        raise ValueError(
            f"no browser can be started on this machine; the page is in {path}. Use --output FILE "
            "to choose the file, and open it on a machine with a browser"
        )
