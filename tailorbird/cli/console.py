"""The command that serves the console."""

import sys
from typing import Annotated

import typer

from tailorbird.cli import options

DEFAULT_PORT = 8270


def console(
    uri: Annotated[str, typer.Argument(metavar="URI", help="URI of the registry.")] = "s3://models",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 for any free port.")
    ] = DEFAULT_PORT,
) -> None:
    """Show all tasks of a registry in a browser: champions, runs and the watch.

    The server reads the registry and writes nothing. It runs until Ctrl-C.

    Example: tailorbird console s3://models
    """
    with options.activity(f"listing the tasks of {uri}"):
        from cluster.connection import sigterm_raises
        from serving.console_server import ConsoleServer
        from tailorbird.storage.listing import list_folder
        from tailorbird.storage.s3 import require_bucket

        require_bucket(uri)  # raises StorageError now and not in the browser
        list_folder(uri)
        server = ConsoleServer(uri, port=port)
    lines = [f"console of {uri}: {server.url}", "only this address opens it; Ctrl-C stops it"]
    options.print_result({"registry": uri, "url": server.url}, lines)
    sys.stdout.flush()
    with sigterm_raises():
        server.run()
