"""Options, output and errors that all commands share."""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from tailorbird.checks.result import CheckResult, passes, to_json, to_lines
from tailorbird.config.loader import load_recipe, parse_recipe
from tailorbird.config.recipe import Recipe

RecipePath = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe's YAML file, or its URI.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[SECTION.KEY=VALUE]...", help="Changes to it.")]
RunOrVersion = Annotated[str, typer.Argument(metavar="URI", help="A run's or a version's URI.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
Address = Annotated[
    str | None, typer.Option("--address", metavar="URL", help="Ray's dashboard, in place of RAY_API_SERVER_ADDRESS.")
]
Follow = Annotated[bool, typer.Option("--follow", help="Show the log until the end; exit with the job's code.")]
JobId = Annotated[str, typer.Argument(metavar="JOB", help="A job's id, as `tailorbird jobs list` shows it.")]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", help="The stack's folder; other verbs find it by TAILORBIRD_HOME; by default .tailorbird."),
]


class ExitCode(IntEnum):
    FAILURE = 1
    """The work failed, or a check found a fault."""
    USER_ERROR = 2
    """The command line, the recipe or the data is at fault; the message says what to do."""
    REEVALUATION_DUE = 3
    """`watch` recommends a new verdict."""
    INTERRUPTED = 130
    """Ctrl-C while a job's log was followed; the job continues."""


@contextmanager
def handle_errors() -> Iterator[None]:
    """Print an expected error as one message and exit with its `ExitCode`; let a bug of ours show its traceback."""
    try:
        yield
    except typer.Exit:
        raise  # a RuntimeError
    except Exception as error:
        is_users = isinstance(error, ValueError)
        if not (
            is_users or isinstance(error, RuntimeError) or type(error).__module__.startswith(("ray.", "safetensors"))
        ):
            raise
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(ExitCode.USER_ERROR if is_users else ExitCode.FAILURE) from error


@contextmanager
def connected_recipe(path: str, overrides: list[str] | None, *, as_json: bool) -> Iterator[tuple[Recipe, Any]]:
    """Connect to Ray and yield the recipe and a progress reporter that writes to the terminal."""
    from cluster.connection import connect
    from cluster.progress_display import display

    recipe = read_recipe(path, overrides)
    with connect(), display(Console(stderr=as_json)) as progress:
        yield recipe, progress


def read_recipe(path: str, overrides: list[str] | None = None) -> Recipe:
    changes = tuple(overrides or ())
    if "://" not in path:
        return load_recipe(path, overrides=changes)
    from tailorbird import storage

    return parse_recipe(storage.read_bytes(path), path=path, overrides=changes)


def read_text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; give a file, or - for standard input") from None


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror or error}; name a file that can be written") from None


def stack_folder(folder: Path | None) -> Path:
    from cluster.local.stack import default_folder

    return folder or default_folder()


def print_result(value: dict[str, Any], *, as_json: bool, lines: Sequence[str]) -> None:
    for line in [json.dumps(value)] if as_json else lines:
        print(line)


def print_checks(results: Sequence[CheckResult], *, as_json: bool) -> None:
    """Print the results of checks; exit with FAILURE if one is a fault."""
    print_result(to_json(results), as_json=as_json, lines=to_lines(results))
    if not passes(results):
        raise typer.Exit(ExitCode.FAILURE)
